//! Every method that the edge answers. What is not in this table does not exist: a new service without rows here is
//! refused, and a test holds the table against the descriptors.

/// One method.
#[derive(Debug, PartialEq, Eq)]
pub struct Method {
    /// As in the request line. Compared whole, and without the query: `/x/Y?a=b` is `/x/Y`.
    pub path: &'static str,
    pub service: Service,
    pub shape: Shape,
    /// A prediction counts as work: it has a place among those in flight, or is shed. Health and reflection are answered under
    /// any load.
    pub prediction: Option<Prediction>,
}

/// One question and its answer, of which most calls are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prediction {
    ModelInfer,
    Predict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    OpenInference,
    Inference,
    Admin,
    Health,
    ReflectionV1,
    ReflectionV1Alpha,
}

/// How many messages the caller sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One; it is late when it does not come.
    One,
    /// Any number, with any pause between them. Each counts as work by itself.
    Stream,
}

/// The listeners' two kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    Inference,
    Admin,
}

/// The frequent ones first: the table is walked.
#[rustfmt::skip]
const METHODS: [Method; 41] = [
    prediction("/inference.GRPCInferenceService/ModelInfer", Service::OpenInference, Prediction::ModelInfer),
    prediction("/sconce.v1.Inference/Predict", Service::Inference, Prediction::Predict),
    stream("/inference.GRPCInferenceService/ModelStreamInfer", Service::OpenInference),
    plain("/sconce.v1.Inference/RecordOutcome", Service::Inference),
    stream("/sconce.v1.Inference/RecordOutcomes", Service::Inference),
    plain("/grpc.health.v1.Health/Check", Service::Health),
    plain("/grpc.health.v1.Health/Watch", Service::Health),
    plain("/inference.GRPCInferenceService/ServerLive", Service::OpenInference),
    plain("/inference.GRPCInferenceService/ServerReady", Service::OpenInference),
    plain("/inference.GRPCInferenceService/ModelReady", Service::OpenInference),
    plain("/inference.GRPCInferenceService/ServerMetadata", Service::OpenInference),
    plain("/inference.GRPCInferenceService/ModelMetadata", Service::OpenInference),
    plain("/inference.GRPCInferenceService/ModelConfig", Service::OpenInference),
    plain("/inference.GRPCInferenceService/ModelStatistics", Service::OpenInference),
    plain("/inference.GRPCInferenceService/RepositoryIndex", Service::OpenInference),
    plain("/inference.GRPCInferenceService/RepositoryModelLoad", Service::OpenInference),
    plain("/inference.GRPCInferenceService/RepositoryModelUnload", Service::OpenInference),
    plain("/sconce.v1.Admin/ListModels", Service::Admin),
    plain("/sconce.v1.Admin/DescribeModel", Service::Admin),
    plain("/sconce.v1.Admin/GetExperiment", Service::Admin),
    plain("/sconce.v1.Admin/WatchEvents", Service::Admin),
    plain("/sconce.v1.Admin/Promote", Service::Admin),
    plain("/sconce.v1.Admin/Rollback", Service::Admin),
    plain("/sconce.v1.Admin/Unpin", Service::Admin),
    plain("/sconce.v1.Admin/SetLabels", Service::Admin),
    plain("/sconce.v1.Admin/SetRoute", Service::Admin),
    plain("/sconce.v1.Admin/Deploy", Service::Admin),
    plain("/sconce.v1.Admin/PauseRollout", Service::Admin),
    plain("/sconce.v1.Admin/ResumeRollout", Service::Admin),
    plain("/sconce.v1.Admin/AbortRollout", Service::Admin),
    plain("/sconce.v1.Admin/DescribeRollout", Service::Admin),
    plain("/sconce.v1.Admin/LoadVersion", Service::Admin),
    plain("/sconce.v1.Admin/UnloadVersion", Service::Admin),
    plain("/sconce.v1.Admin/ReloadModel", Service::Admin),
    plain("/sconce.v1.Admin/DisableModel", Service::Admin),
    plain("/sconce.v1.Admin/EnableModel", Service::Admin),
    plain("/sconce.v1.Admin/Refresh", Service::Admin),
    plain("/sconce.v1.Admin/SetLogLevel", Service::Admin),
    plain("/sconce.v1.Admin/ServerInfo", Service::Admin),
    stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Service::ReflectionV1),
    stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Service::ReflectionV1Alpha),
];

pub fn find(path: &str) -> Option<&'static Method> {
    METHODS.iter().find(|method| method.path == path)
}

// === impl Method ===

const fn prediction(path: &'static str, service: Service, prediction: Prediction) -> Method {
    Method { path, service, shape: Shape::One, prediction: Some(prediction) }
}

const fn plain(path: &'static str, service: Service) -> Method {
    Method { path, service, shape: Shape::One, prediction: None }
}

const fn stream(path: &'static str, service: Service) -> Method {
    Method { path, service, shape: Shape::Stream, prediction: None }
}

// === impl Service ===

impl Service {
    /// Whether the service is spoken at that door.
    pub fn is_behind(self, door: Door) -> bool {
        match self {
            Service::OpenInference | Service::Inference => door == Door::Inference,
            Service::Admin => door == Door::Admin,
            Service::Health | Service::ReflectionV1 | Service::ReflectionV1Alpha => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::proto::DESCRIPTORS;
    use prost::Message;
    use prost_types::FileDescriptorSet;
    use std::collections::BTreeSet;

    #[test]
    fn every_method_of_the_descriptors_has_its_row() {
        let sets = [
            DESCRIPTORS,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ];
        let mut declared = BTreeSet::new();
        for set in sets {
            for file in FileDescriptorSet::decode(set).expect("a descriptor set").file {
                for service in &file.service {
                    for method in &service.method {
                        let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                        let shape = if method.client_streaming() { Shape::Stream } else { Shape::One };
                        let row = find(&path).unwrap_or_else(|| panic!("{path} has no row"));
                        assert_eq!(row.shape, shape, "{path}");
                        declared.insert(path);
                    }
                }
            }
        }
        assert_eq!(declared.len(), METHODS.len(), "a row without a method");
    }

    #[test]
    fn only_the_exact_path_is_a_method() {
        for path in [
            "",
            "/",
            "sconce.v1.Inference/Predict",
            "//sconce.v1.Inference/Predict",
            "/sconce.v1.Inference/Predict/",
            "/sconce.v1.inference/Predict",
            "/sconce.v1.Inference/%50redict",
        ] {
            assert!(find(path).is_none(), "{path} passed");
        }
    }
}
