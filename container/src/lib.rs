//! Containers, each in a VM of its own: from an image and a user's options to a VM with an agent, and its life.
//!
//! A container's VM has three disks: the agent's root, the image (see the crate `erofs`), and what takes its changes.
//! The agent connects over vsock and is told what to run; standard input and output are connections of their own.

mod activity;
mod agent;
mod assets;
mod attach;
mod changes;
mod connection;
mod ender;
mod exec;
mod files;
mod health;
mod image;
mod limits;
mod machine;
mod mounts;
mod network;
mod options;
mod output;
mod pod;
mod ports;
mod requests;
mod run;
mod seccomp;
mod session;
mod signal;
mod sockets;
mod spec;
mod stdio;
mod streams;
mod template;
mod timing;
mod update;
mod visit;

pub use agent::{AGENT, NoDevice};
pub use agent_protocol::{ProcessEntry, Stream as OutputStream, Usage};
pub use assets::{Assets, AssetsError};
pub use attach::{
    AttachError, AttachOptions, AttachStreams, Attached, Attachments, DetachKeys, KeysError, attach,
    connect as connect_to_keeper,
};
pub use changes::{create_at as create_changes, path as changes_path};
pub use exec::{Detached, ExecError, Executed, exec, exec_detached};
pub use files::{Files, FilesError, Incoming, Outgoing};
pub use health::{
    Health, HealthCheck, HealthOptions, HealthResult, HealthStatus, ImageHealth,
    SHORTEST as SHORTEST_HEALTH_TIME, watch as watch_health,
};
pub use image::{Image, ImageConfig};
pub use limits::{CpuSet, LimitError, Ulimit};
pub use machine::size;
pub use mounts::{
    LongMount, MountError, MountOption, MountSource, PodFolder, PodFolders, PodSource, PodVolume,
    PrepareError, Prepared, ShortMount, Tmpfs, VolumeMount, check_room, create as create_volume,
    make_volumes, prepare, prepare_holding, prepare_in_pod, record as volume_record, settle, volume_size,
};
pub use network::{HOST_GATEWAY, NetworkOption, StaticAddress, container_address};
pub use options::{ExecOptions, OptionsError, RunOptions, Storage};
pub use output::{LogLimits, LogOptions, LogReader, LogTarget, OutputLine, field_name, follow, parse_time};
pub use pod::{Member, PodKeeper, PodLeft, PodOptions, PodPlace, PodPlan, is_pod, pod_directory};
pub use ports::{ExposedPorts, PortMapping, PortsError, of as published, publish as publish_ports};
pub use requests::{freeze, is_frozen, kill_within, processes, send_signal, usage};
pub use run::{Attachment, Copied, Ended, Keeper, Left, MakeDisk, Origin, Plan, RunError, check};
pub use signal::number as signal_number;
pub use spec::{SHM_SIZE, command, entrypoint_and_command, storage};
pub use template::{
    Listed as ListedTemplate, Root as TemplateRoot, Shape, Template, TemplateError, Templates,
    Verified as VerifiedTemplate,
};
pub use timing::{Step, Timing};
pub use update::{Update, update};
pub use visit::Visit;
