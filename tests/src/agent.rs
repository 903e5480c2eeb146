//! An agent that a test tells what to do, step by step.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::child::Child;
use crate::clients;
use crate::daemon::Home;

/// How long one step may take.
const STEP: Duration = Duration::from_secs(8);

/// The interpreter and the script, where an unprivileged user can read it.
///
/// # Errors
/// The script cannot be written.
pub fn words(home: &Home) -> Result<[PathBuf; 3]> {
    let script = clients::write(home.folder(), "agent.py", clients::AGENT)?;
    Ok(["/usr/bin/python3".into(), "-B".into(), script])
}

/// A running one; it is killed when the value is dropped.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    orders: std::fs::File,
    answers: Receiver<String>,
}

impl Agent {
    /// Starts it with a command that runs [`words`].
    ///
    /// # Errors
    /// It does not start.
    pub fn start(command: &mut Command) -> Result<Self> {
        let (orders_out, orders) = std::io::pipe().context("pipe")?;
        command.stdin(Stdio::from(OwnedFd::from(orders_out))).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = Child::start(command, Signal::SIGKILL)?;
        // The command keeps a copy of our end of the pipe's other end; without this, the agent's death goes unnoticed.
        command.stdin(Stdio::null());
        let out = child.take_stdout().context("the agent's stdout")?;
        let (sender, answers) = mpsc::channel();
        thread::spawn(move || {
            // The receiver is gone once the test is over.
            BufReader::new(out).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Ok(Self { child, orders: OwnedFd::from(orders).into(), answers })
    }

    /// The same in a session of `agent`, as `user`.
    ///
    /// # Errors
    /// See [`Self::start`].
    pub fn run(home: &Home, agent: &str, user: &str) -> Result<Self> {
        Self::start(&mut home.run(agent, user, &words(home)?))
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Gives an order and returns its answer: `ok`, `timeout` or the name of an errno.
    ///
    /// # Errors
    /// It has ended or does not answer.
    pub fn tell(&mut self, order: &str) -> Result<String> {
        writeln!(self.orders, "{order}").with_context(|| format!("the agent does not take {order:?}"))?;
        self.answers.recv_timeout(STEP).with_context(|| format!("the agent does not answer {order:?}"))
    }

    /// Ends it and waits until it has ended.
    ///
    /// # Errors
    /// It does not end.
    pub fn end(mut self) -> Result<()> {
        self.child.signal(Signal::SIGKILL)?;
        self.child.wait(STEP).map(drop)
    }
}
