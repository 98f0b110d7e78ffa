//! The example scripts of docs/fencing, run as the daemon runs them, against programs of the same
//! names that only pretend: a script may end with success only when the node is known to be off
//! (ONE-2).

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cairn_daemon::volume::FenceOrder;
use rustix::process::{Pid, test_kill_process};

/// What the pretended program does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    /// The node goes off.
    Works,
    /// It says yes, and the node stays on.
    Nothing,
    /// It ends with an error.
    Refuses,
    /// It never ends.
    Hangs,
}

/// What every pretended program begins with: it notes how it was called, and who it is.
const BEGIN: &str = "\
#!/bin/sh
printf '%s\\n' \"$*\" >> \"$PRETEND/asked\"
case $(cat \"$PRETEND/does\") in
Refuses) echo 'no such host' >&2; exit 7 ;;
Hangs) echo $$ > \"$PRETEND/pid\"; exec /bin/sleep 1000 ;;
Works) off() { : > \"$PRETEND/off\"; } ;;
*) off() { :; } ;;
esac
is_off() { [ -e \"$PRETEND/off\" ]; }
";

const IPMITOOL: &str = "\
case \"$*\" in
*'power off') off ;;
*'power status') if is_off; then echo 'Chassis Power is off'; else echo 'Chassis Power is on'; fi ;;
*) exit 64 ;;
esac
";

const VIRSH: &str = "\
case $3 in
domstate) if is_off; then echo 'shut off'; else echo running; fi ;;
destroy) off ;;
*) exit 64 ;;
esac
";

const CURL: &str = "\
grep -q 'PVEAPIToken=cairn@pve!fence=secret' || exit 65
case \"$*\" in
*--request\\ POST*/status/stop) off; echo '{}' ;;
*/status/current) if is_off; then echo '{\"status\":\"stopped\"}'; else echo '{\"status\":\"running\"}'; fi ;;
*) exit 64 ;;
esac
";

/// Its node answers as long as it is on.
const SSH: &str = "\
if is_off; then exit 255; fi
case \"$*\" in
*sysrq*) off; echo going ;;
*' true') ;;
*) exit 64 ;;
esac
";

const CONFIGURATION: &str = "\
ipmi_host_node_2=192.0.2.102
ipmi_user=cairn
ipmi_password_file=/nowhere
libvirt_uri=qemu+ssh://fence@host.example/system
libvirt_domain_node_2=vm-node2
proxmox_api=https://pve.example:8006/api2/json
proxmox_token='cairn@pve!fence=secret'
proxmox_ca=/nowhere
proxmox_vm_node_2=pve1/qemu/101
";

/// A directory with pretended programs.
struct Stage(tempfile::TempDir);

impl Stage {
    fn new(program: &str, body: &str, does: Does) -> Self {
        let stage = Self(tempfile::tempdir().expect("a directory"));
        stage.program(program, &format!("{BEGIN}{body}"));
        // The scripts give machines time; nobody needs it here.
        stage.program("sleep", "#!/bin/sh\n");
        fs::write(stage.path("does"), format!("{does:?}")).expect("written");
        fs::write(stage.path("fence.conf"), CONFIGURATION).expect("written");
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn program(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("written");
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(self.path(name), mode).expect("made a program");
    }

    fn run(&self, script: &str, node: &str, within: Duration) -> Result<(), String> {
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/fencing");
        let path = format!("{}:/usr/bin:/bin", self.0.path().display());
        let text = |path: PathBuf| path.display().to_string();
        FenceOrder {
            command: format!("sh {}", scripts.join(script).display()),
            within,
            environment: vec![
                ("PATH", path),
                ("PRETEND", text(self.0.path().to_owned())),
                ("CAIRN_FENCE_CONF", text(self.path("fence.conf"))),
                ("CAIRN_NODE", node.to_owned()),
                ("CAIRN_NODE_ID", "00".repeat(16)),
                ("CAIRN_ADDRESS", "[192.0.2.2]:7420".to_owned()),
                ("CAIRN_SELF", "node-1".to_owned()),
                ("CAIRN_VOLUME", "v1".to_owned()),
                ("CAIRN_TERM", "3".to_owned()),
                ("CAIRN_REASON", "primary-lost".to_owned()),
            ],
        }
        .run()
    }

    fn asked(&self) -> String {
        fs::read_to_string(self.path("asked")).unwrap_or_default()
    }
}

/// Only ends a script that hangs.
const LONG: Duration = Duration::from_secs(60);

/// Runs one script against each kind of program. `whom`: what it must have asked about.
fn try_all(script: &str, program: &str, body: &str, whom: &str) {
    for does in [Does::Works, Does::Nothing, Does::Refuses] {
        let stage = Stage::new(program, body, does);
        let done = stage.run(script, "node-2", LONG);
        assert_eq!(done.is_ok(), does == Does::Works, "{does:?}: {done:?}");
        assert!(stage.asked().contains(whom), "{}", stage.asked());
        assert!(!stage.asked().contains("secret"), "arguments can be seen");
        if let Err(reason) = done {
            assert!(reason.contains(':'), "it says why: {reason}");
        }
    }
    let stage = Stage::new(program, body, Does::Hangs);
    let done = stage.run(script, "node-2", Duration::from_secs(1));
    let reason = done.expect_err("it hangs");
    assert!(reason.contains("did not end within 1 s"), "{reason}");
    let pid = fs::read_to_string(stage.path("pid")).expect("it was started");
    let pid = pid.trim().parse().ok().and_then(Pid::from_raw);
    // It is a child of nobody here: once killed it goes when its new parent looks.
    let is_gone = |pid: Pid| {
        let state = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
        test_kill_process(pid).is_err() || state.is_ok_and(|text| text.contains(") Z "))
    };
    let pid = pid.expect("a process has a number");
    let end = Instant::now() + LONG;
    while !is_gone(pid) && Instant::now() < end {
        std::thread::yield_now();
    }
    assert!(is_gone(pid), "what it started is ended too");
}

#[test]
fn ipmi_fences_only_what_the_controller_says_is_off() {
    try_all("ipmi.sh", "ipmitool", IPMITOOL, "-H 192.0.2.102");
}

#[test]
fn libvirt_fences_only_what_the_host_says_is_off() {
    try_all("libvirt.sh", "virsh", VIRSH, "vm-node2");
}

#[test]
fn proxmox_fences_only_what_the_api_says_is_off() {
    try_all("proxmox.sh", "curl", CURL, "/nodes/pve1/qemu/101/status/");
}

#[test]
fn ssh_fences_only_a_node_that_answered_and_answers_no_more() {
    try_all("ssh-poweroff.sh", "ssh", SSH, "root@192.0.2.2");
}

#[test]
fn a_node_that_the_configuration_does_not_name_is_not_fenced() {
    for (script, program, body) in [
        ("ipmi.sh", "ipmitool", IPMITOOL),
        ("proxmox.sh", "curl", CURL),
    ] {
        let stage = Stage::new(program, body, Does::Works);
        let refused = stage.run(script, "other.example", LONG);
        let reason = refused.expect_err("nobody knows it");
        assert!(reason.contains("other_example"), "{reason}");
        assert_eq!(stage.asked(), "", "nobody else was asked to go off");
    }
}

#[test]
fn without_a_configuration_no_script_claims_anything() {
    for script in ["ipmi.sh", "libvirt.sh", "proxmox.sh", "ssh-poweroff.sh"] {
        let stage = Stage::new("ipmitool", IPMITOOL, Does::Works);
        fs::remove_file(stage.path("fence.conf")).expect("removed");
        assert!(stage.run(script, "node-2", LONG).is_err(), "{script}");
    }
}
