// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine's monitor: stop it, read its RAM, let it go on.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

/// A connection to the monitor.
pub(crate) struct Qmp {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    stopper: Arc<Mutex<()>>,
}

impl Qmp {
    /// `stopper` is held by whoever of the machine's monitors has stopped it.
    pub(super) fn open(socket: &Path, stopper: Arc<Mutex<()>>) -> Result<Self> {
        let writer = UnixStream::connect(socket).context("cannot reach QEMU's monitor")?;
        writer.set_read_timeout(Some(Duration::from_secs(120)))?;
        let mut qmp = Self { reader: BufReader::new(writer.try_clone()?), writer, stopper };
        let greeting = qmp.message()?;
        if greeting.get("QMP").is_none() {
            bail!("unexpected greeting of QEMU's monitor");
        }
        qmp.call("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Does something while no CPU runs. One that switched itself off stays so.
    ///
    /// # Errors
    /// If the monitor says so, or what is done fails.
    pub(crate) fn while_stopped<R>(&mut self, what: impl FnOnce(&mut Self) -> Result<R>) -> Result<R> {
        let stopper = Arc::clone(&self.stopper);
        let _stopped = stopper.lock().unwrap_or_else(PoisonError::into_inner);
        self.call("stop", json!({}))?;
        let result = what(self);
        if self.status()? == "paused" {
            self.call("cont", json!({}))?;
        }
        result
    }

    fn status(&mut self) -> Result<String> {
        let status = self.call("query-status", json!({}))?;
        Ok(status.get("status").and_then(Value::as_str).unwrap_or_default().to_owned())
    }

    /// Writes `size` bytes of physical memory from `address` to `file`.
    ///
    /// # Errors
    /// If the monitor says so.
    pub(crate) fn save_memory(&mut self, address: u64, size: u64, file: &Path) -> Result<()> {
        let name = file.to_str().context("a file name that is not UTF-8")?;
        self.call("pmemsave", json!({ "val": address, "size": size, "filename": name })).map(drop)
    }

    /// Waits until the machine has switched itself off. It must not end with that: `-no-shutdown`.
    ///
    /// # Errors
    /// If the monitor closes, or says nothing for long.
    pub(crate) fn wait_for_power_off(&mut self) -> Result<()> {
        // What happened before is a state, what happens from now on an event.
        if self.status()? == "shutdown" {
            return Ok(());
        }
        while self.message()?.get("event").is_none_or(|event| event != "SHUTDOWN") {}
        Ok(())
    }

    fn call(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.writer, "{request}")?;
        loop {
            let mut answer = self.message()?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refused {command}: {error}");
            }
            // Anything else is an event.
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    fn message(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            bail!("QEMU closed its monitor");
        }
        serde_json::from_str(&line).context("QEMU's monitor does not speak JSON")
    }
}
