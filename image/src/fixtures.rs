//! Images for tests.

use std::io::Write;

use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::digest::Digest;
use crate::documents::{OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST};

/// An image with its layers' tar streams.
#[derive(Clone)]
pub(crate) struct Fixture {
    pub(crate) layers: Vec<Vec<u8>>,
    pub(crate) config: Vec<u8>,
}

/// A tar archive of these files.
pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        builder.append_data(&mut header(content.len()), name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(crate) fn header(length: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(u64::try_from(length).unwrap());
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    header
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::new(4));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Bytes that do not compress.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(|_| next()).collect()
}

impl Fixture {
    pub(crate) fn new(layers: &[&[(&str, &[u8])]]) -> Self {
        Self::of_tars(layers.iter().map(|files| tar(files)).collect())
    }

    pub(crate) fn of_tars(layers: Vec<Vec<u8>>) -> Self {
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
        let history: Vec<Value> =
            (0..layers.len()).map(|n| json!({"created_by": format!("step {n}")})).collect();
        let config = json!({
            "created": "2024-05-06T07:08:09Z", "architecture": "amd64", "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Cmd": ["/hello"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": history,
        });
        Self { layers, config: serde_json::to_vec(&config).unwrap() }
    }

    pub(crate) fn id(&self) -> Digest {
        Digest::of(&self.config)
    }

    /// As `docker save` wrote it for years: layers first, `manifest.json` last.
    pub(crate) fn docker_archive(&self, tags: &[&str]) -> Vec<u8> {
        let names: Vec<String> = (0..self.layers.len()).map(|number| format!("{number}/layer.tar")).collect();
        let config = format!("{}.json", self.id().hex());
        let manifest = json!([{"Config": config, "RepoTags": tags, "Layers": names}]);
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let mut files: Vec<(&str, &[u8])> = Vec::new();
        for (name, layer) in names.iter().zip(&self.layers) {
            files.push((name, layer));
        }
        files.push((&config, &self.config));
        files.push(("manifest.json", &manifest));
        tar(&files)
    }

    /// The manifest of the layers, each compressed by `compress`, and all blobs.
    pub(crate) fn oci(&self, suffix: &str, compress: impl Fn(&[u8]) -> Vec<u8>) -> (Vec<u8>, Vec<Vec<u8>>) {
        let mut blobs: Vec<Vec<u8>> = self.layers.iter().map(|layer| compress(layer)).collect();
        let layers: Vec<Value> =
            blobs.iter().map(|blob| descriptor(&format!("{OCI_LAYER}{suffix}"), blob)).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(OCI_CONFIG, &self.config),
            "layers": layers,
        });
        blobs.push(self.config.clone());
        (serde_json::to_vec(&manifest).unwrap(), blobs)
    }

    /// An OCI layout in an archive.
    pub(crate) fn oci_archive(
        &self,
        name: &str,
        suffix: &str,
        compress: impl Fn(&[u8]) -> Vec<u8>,
    ) -> Vec<u8> {
        let (manifest, mut blobs) = self.oci(suffix, compress);
        let mut entry = descriptor(OCI_MANIFEST, &manifest);
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]});
        blobs.push(manifest);
        layout(&index, &blobs)
    }
}

/// An OCI layout with this index and these blobs.
pub(crate) fn layout(index: &Value, blobs: &[Vec<u8>]) -> Vec<u8> {
    let names: Vec<String> =
        blobs.iter().map(|blob| format!("blobs/sha256/{}", Digest::of(blob).hex())).collect();
    let index = serde_json::to_vec(index).unwrap();
    let mut files: Vec<(&str, &[u8])> = vec![("index.json", &index)];
    files.push(("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#));
    files.extend(names.iter().zip(blobs).map(|(name, blob)| (name.as_str(), blob.as_slice())));
    tar(&files)
}

pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len()})
}
