//! `auditor daemon`: runs in the foreground, logs to stderr, and says READY on stdout when all programs are attached.

use std::io::{IsTerminal, stderr};
use std::path::PathBuf;
use std::process::ExitCode;

use auditor::config::LoadError;
use auditor::daemon::{self, Options, StartError};
use tracing_subscriber::EnvFilter;

use super::Places;
use super::failure::{complain, complain_of_place};

/// Filter of the log, in the syntax of tracing-subscriber's `EnvFilter`.
const FILTER_VARIABLE: &str = "AUDITOR_LOG";

#[derive(Debug, clap::Args)]
pub(crate) struct Daemon {
    /// Keep what the kernel reports in this new file, for developers: it holds everything that agents say, passwords
    /// included, and is readable for its owner only
    #[arg(long, value_name = "FILE")]
    record_capture: Option<PathBuf>,
    /// Bytes that the capture may grow to; then it ends, and auditing goes on
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 30, requires = "record_capture")]
    capture_limit: u64,
    /// Take over from the daemon that runs in the same runtime directory, if one does: nothing is lost in between
    #[arg(long)]
    replace: bool,
}

impl Daemon {
    pub(crate) fn execute(self, places: Places) -> ExitCode {
        start_log();
        let options = Options {
            config: places.config,
            state_dir: places.state_dir,
            runtime_dir: places.runtime_dir,
            pin_dir: places.pin_dir,
            cgroup_root: places.cgroup_root,
            capture: self.record_capture.map(|path| (path, self.capture_limit)),
            replace: self.replace,
        };
        match daemon::run(&options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                match &error {
                    StartError::Configuration(invalid @ LoadError::Invalid { .. }) => {
                        complain_of_place(invalid);
                    }
                    error => complain(error),
                }
                ExitCode::from(error.exit_status())
            }
        }
    }
}

fn start_log() {
    let filter = EnvFilter::try_from_env(FILTER_VARIABLE).unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).with_ansi(colours).init();
}
