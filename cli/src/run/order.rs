//! What the user has ordered.

use std::path::PathBuf;

use container::{Assets, HealthOptions, Image, LogLimits, RunOptions};
use instance::{Entry, Format, Kind, Phase, Process, Summary, VmId, VmName, time};
use serde::{Deserialize, Serialize};
use vmm::PublishConfig;

use super::details::{details, ports};
use super::front::Attached;
use super::log::LogDetails;
use super::policy::RestartPolicy;
use crate::chain;

/// What the user has ordered, as it is kept with the container. What another version of mvm has beyond it is passed
/// over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The version of this.
    #[serde(default)]
    pub format: Format,
    /// The image's ID, as in `sha256:…`.
    pub image: String,
    /// As the user calls it.
    pub image_name: String,
    pub options: RunOptions,
    /// It is removed when it ends.
    #[serde(default)]
    pub removes: bool,
    #[serde(default)]
    pub log: Option<LogLimits>,
    /// What is noted with its output.
    #[serde(default)]
    pub log_details: LogDetails,
    /// The file that got its ID.
    #[serde(default)]
    pub cid_file: Option<PathBuf>,
    /// Containers whose mounts it has, as the user has written them.
    #[serde(default)]
    pub volumes_from: Vec<String>,
    /// The streams that the user's command is connected with.
    #[serde(default)]
    pub attached: Attached,
    /// Seconds that it has to end when it is asked to.
    #[serde(default)]
    pub stop_timeout: Option<u64>,
    /// Its input ends with that of the first one who is attached.
    #[serde(default)]
    pub input_once: bool,
    /// When it is started again.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// How its health is checked, where the image does not say it.
    #[serde(default)]
    pub health: HealthOptions,
    /// The pod that it is in.
    #[serde(default)]
    pub pod: Option<VmId>,
}

impl Order {
    /// What its VM is made of.
    pub fn summary(&self, assets: &Assets) -> Summary {
        let (cpus, memory) = container::size(&self.options);
        Summary {
            cpus,
            memory,
            kernel: assets.kernel.display().to_string(),
            rootfs: None,
            stop_timeout_ms: self.stop_timeout.map(|seconds| seconds.saturating_mul(1000)),
        }
    }

    /// Its record, when it is made or begins a life.
    pub fn entry(
        &self,
        image: &Image,
        id: VmId,
        name: Option<VmName>,
        phase: Phase,
        publish: &[PublishConfig],
    ) -> Result<Entry, String> {
        Ok(Entry {
            format: Format::default(),
            name,
            kind: Kind::Container,
            created: time::now(),
            started: None,
            phase,
            restarts: 0,
            pod: self.pod.clone(),
            process: Process::own().map_err(|error| chain(&error))?,
            removes: self.removes,
            image: self.image_name.clone(),
            image_id: Some(self.image.clone()),
            command: container::command(&image.config, &self.options),
            ports: ports(publish),
            labels: self.options.labels.iter().cloned().collect(),
            volumes: self.options.volumes(),
            details: details(self, image, id.as_str(), publish),
            id,
        })
    }
}
