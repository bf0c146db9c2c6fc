//! Where the agent of a VM's guest is reached.

use std::os::unix::fs::symlink;
use std::path::Path;

use container::AGENT;
use vmm::{VmConfig, VsockConfig};

use super::Refusal;
use crate::exit_code;

/// Gives the VM of `config` a place at which `mvm exec` and `mvm cp` find its agent, in its `directory`: where it
/// `has_agent` and no socket device, it gets one there, and one that it has is linked from there.
///
/// # Errors
///
/// There is no directory, or nothing can be made in it.
pub fn give_place(config: &mut VmConfig, has_agent: bool, directory: Option<&Path>) -> Result<(), Refusal> {
    let Some(directory) = directory else {
        if !has_agent {
            return Ok(());
        }
        let message = "--agent needs the VM's directory: leave --runtime-dir none or --agent out".to_owned();
        return Err(Refusal { code: exit_code::USAGE, message });
    };
    let place = directory.join(AGENT);
    match &config.vsock {
        None if has_agent => config.vsock = Some(VsockConfig { path: place, cid: VsockConfig::MIN_CID }),
        None => {}
        Some(vsock) => {
            let linked = std::path::absolute(&vsock.path).and_then(|path| symlink(path, place));
            linked.map_err(|error| Refusal::host("make a link to the VM's socket", &error))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_added_or_linked() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join(AGENT);
        let mut config = VmConfig::new("k");
        assert!(give_place(&mut config, false, Some(directory.path())).is_ok() && config.vsock.is_none());
        assert!(give_place(&mut config, true, Some(directory.path())).is_ok());
        assert_eq!(config.vsock.as_ref().map(|vsock| (&*vsock.path, vsock.cid)), Some((&*place, 3)));
        let refused = give_place(&mut config, true, None).err().unwrap();
        assert!(
            refused.code == exit_code::USAGE && refused.message.contains("--agent"),
            "{}",
            refused.message
        );
        for has_agent in [false, true] {
            config.vsock = Some("./v,cid=7".parse().unwrap());
            assert!(give_place(&mut config, has_agent, Some(directory.path())).is_ok());
            assert_eq!(std::fs::read_link(&place).unwrap(), std::env::current_dir().unwrap().join("v"));
            std::fs::remove_file(&place).unwrap();
        }
        assert!(give_place(&mut config, false, None).is_ok());
    }
}
