// Asks the model `slow` for more than it can give, as callers do who know nothing of each other and retry by the service config.
//
//	overload ADDRESS SERVICE_CONFIG CALLERS SECONDS
//
// Prints one line of JSON: what came of the calls, and whether each retry waited for as long as the server had asked.
package main

import (
	"context"
	"encoding/json"
	"log"
	"os"
	"strconv"
	"sync"
	"time"

	sconcev1 "github.com/sconce-serving/sconce/proto/sconce/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/health" // without it the service config's healthCheckConfig is ignored
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
)

// What is printed.
type tally struct {
	Calls      int `json:"calls"`
	Answered   int `json:"answered"`
	Refused    int `json:"refused"`    // UNAVAILABLE, after all retries
	Otherwise  int `json:"otherwise"`  // ended in any other way
	Attempts   int `json:"attempts"`   // calls and their retries, as sent
	Refusals   int `json:"refusals"`   // attempts that were refused
	Hintless   int `json:"hintless"`   // of them, those without grpc-retry-pushback-ms
	TooSoon    int `json:"too_soon"`   // retries that were sent before their time
	Afterwards int `json:"afterwards"` // of ten calls in turn after the overload, those that were answered

	lock  sync.Mutex
	other string // the first that ended otherwise
}

// One call of ours, which is one or more attempts.
type call struct {
	refusedAt time.Time
	pushback  time.Duration
	hinted    bool
}

type callKey struct{}

const (
	afterwards = 10
	deadline   = 20 * time.Second
)

func main() {
	address, configFile := os.Args[1], os.Args[2]
	callers, seconds := must(strconv.Atoi(os.Args[3])), must(strconv.Atoi(os.Args[4]))

	total := &tally{}
	config := string(must(os.ReadFile(configFile)))
	connection := must(grpc.NewClient("dns:///"+address,
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultServiceConfig(config),
		grpc.WithStatsHandler(total)))
	defer connection.Close()
	client := sconcev1.NewInferenceClient(connection)

	var wait sync.WaitGroup
	ends := time.Now().Add(time.Duration(seconds) * time.Second)
	for range callers {
		wait.Add(1)
		go func() {
			defer wait.Done()
			for time.Now().Before(ends) {
				total.ended(predict(client))
			}
		}()
	}
	wait.Wait()
	for range afterwards {
		if predict(client) == nil {
			total.Afterwards++
		}
	}
	if total.other != "" {
		log.Print(total.other)
	}
	must(0, json.NewEncoder(os.Stdout).Encode(total))
}

func predict(client sconcev1.InferenceClient) error {
	request := &sconcev1.PredictRequest{
		Model:  "slow",
		Inputs: []*sconcev1.Tensor{{Name: "x", Shape: []int64{1, 8}, Floats: make([]float32, 8)}},
	}
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	_, err := client.Predict(context.WithValue(ctx, callKey{}, &call{}), request)
	return err
}

func (t *tally) ended(err error) {
	t.lock.Lock()
	defer t.lock.Unlock()
	t.Calls++
	switch status.Code(err) {
	case codes.OK:
		t.Answered++
	case codes.Unavailable:
		t.Refused++
	default:
		t.Otherwise++
		if t.other == "" {
			t.other = err.Error()
		}
	}
}

// HandleRPC sees every attempt; those of one call come one after another.
func (t *tally) HandleRPC(ctx context.Context, what stats.RPCStats) {
	call, ok := ctx.Value(callKey{}).(*call)
	if !ok {
		return // the health of the connection
	}
	t.lock.Lock()
	defer t.lock.Unlock()
	switch what := what.(type) {
	case *stats.Begin:
		t.Attempts++
		if call.hinted && what.BeginTime.Sub(call.refusedAt) < call.pushback {
			t.TooSoon++
		}
		call.hinted = false
	case *stats.InTrailer:
		if hints := what.Trailer.Get("grpc-retry-pushback-ms"); len(hints) == 1 {
			millis, err := strconv.Atoi(hints[0])
			call.pushback, call.hinted = time.Duration(millis)*time.Millisecond, err == nil
		}
	case *stats.End:
		if status.Code(what.Error) != codes.Unavailable {
			return
		}
		t.Refusals++
		if !call.hinted {
			t.Hintless++
		}
		call.refusedAt = what.EndTime
	}
}

func (t *tally) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (t *tally) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (t *tally) HandleConn(context.Context, stats.ConnStats)                       {}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}
