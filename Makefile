# Sconce: everything from a fresh clone. `make help` lists the targets.

STORE ?= model-store
ARGS ?=
# Tests run on the release build: it is the one that ships, and one build then serves run, test, lint and bench alike
# (a debug build would compile libtorch's bindings, minutes of C++, a second time).
PROFILE ?= --release
TEST_ARGS ?=
BENCH ?= serving routing swap overload
CARGO ?= cargo

export SCONCE_NATIVE_DIR ?= $(CURDIR)/native
export NATIVE_FROM

DENY_VERSION := 0.20.2
DENY := target/tools/bin/cargo-deny

.DEFAULT_GOAL := help
.PHONY: help run build test bench profile demo-swap demo-canary gpu gpu-libraries lint clean preflight libraries plugin venv

help: ## This list
	@echo 'make TARGET, from a fresh clone:'
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-15s %s\n", $$1, $$2 }'
	@echo
	@echo 'make run STORE=DIR       serve another model store (a folder)'
	@echo 'make run ARGS="--help"   pass options to `sconce serve`'
	@echo 'NATIVE_FROM=DIR make …   take the native libraries from a folder of wheels, without a network'

run: preflight ## Serve STORE (the sample models): libraries, release build, server; safe to repeat and to interrupt
	@scripts/native.py onnxruntime lightgbm
	@echo '== building the server'
	@$(CARGO) build --release
	@scripts/run.sh --model-store '$(STORE)' $(ARGS)

build: preflight libraries ## Native libraries, the release binary and the TorchScript plugin
	@echo '== building the server and the TorchScript plugin'
	@scripts/torch-plugin.sh --workspace
	@echo '== built: target/release/sconce'

test: goal := test
test: preflight libraries venv ## Every test, the clients' in Python, Go and Java included (TEST_ARGS='name' for some)
	@echo '== building what is tested'
	@scripts/torch-plugin.sh --workspace
	@for tool in go mvn; do command -v $$tool >/dev/null || echo "== no $$tool here: its client is not tested"; done
	@echo '== testing'
	@SCONCE_TEST_PYTHON="$(CURDIR)/target/venv/bin/python" $(CARGO) test $(PROFILE) --workspace $(TEST_ARGS)

bench: preflight libraries ## Throughput, latency, CPU a request; what swaps, large stores and overload cost (BENCH=swap: one of them)
	@scripts/torch-plugin.sh --workspace
	@for bench in $(BENCH); do $(CARGO) bench --bench $$bench -- $(ARGS) || exit; done

profile: preflight libraries ## A flamegraph of a core under load: benches/flamegraph.svg (needs perf and inferno)
	@scripts/profile.sh

demo-swap: preflight libraries ## A minute of load over a sample model that is swapped twenty times; fails if a call did
	@$(CARGO) bench --bench swap -- demo $(ARGS)

demo-canary: preflight ## Half a minute: a bad version of a sample model goes in by a canary, and is judged and undone
	@scripts/native.py lightgbm
	@$(CARGO) build --release
	@scripts/demo-canary.sh

gpu: preflight ## On a machine with a GPU: CUDA builds of the libraries, build, GPU tests and figures (docs/gpu.md)
	@scripts/gpu.py $(ARGS)

gpu-libraries: preflight ## The CUDA builds of the libraries alone
	@scripts/native.py onnxruntime-gpu cuda torch-gpu

lint: goal := lint
lint: preflight $(DENY) ## Format, clippy with warnings denied, and the dependencies' bans, licences, sources, advisories
	@echo '== format'
	@$(CARGO) fmt --all --check
	@scripts/native.py torch
	@echo '== clippy'
	@$(CARGO) clippy $(PROFILE) --workspace --all-targets -- -D warnings
	@echo '== dependencies: bans, licences, sources'
	@$(DENY) --workspace check bans licenses sources
	@echo '== dependencies: advisories'
	@if GIT_TERMINAL_PROMPT=0 timeout 120 $(DENY) --workspace fetch db; then $(DENY) --workspace --offline check advisories; \
	 else echo 'the advisory database cannot be reached from here (https://github.com/RustSec/advisory-db): not checked'; fi

clean: ## Remove what was built; the fetched libraries stay (`rm -r native` removes them)
	$(CARGO) clean
	rm -f native/libsconce_torch.so

# === what the targets above are made of ===

preflight:
	@scripts/preflight.sh $(goal)

libraries: preflight
	@scripts/native.py onnxruntime lightgbm torch

plugin: preflight ## The TorchScript plugin alone
	@scripts/torch-plugin.sh

venv: preflight
	@scripts/venv.sh

$(DENY): | preflight
	@echo '== installing cargo-deny $(DENY_VERSION) into target/tools (some minutes, once)'
	@$(CARGO) install cargo-deny --locked --version $(DENY_VERSION) --root target/tools
