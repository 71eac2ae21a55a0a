// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine's monitor: stop it, read its RAM, let it go on.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

/// A connection to the monitor.
pub(crate) struct Qmp {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Qmp {
    pub(super) fn open(socket: &Path) -> Result<Self> {
        let writer = UnixStream::connect(socket).context("cannot reach QEMU's monitor")?;
        writer.set_read_timeout(Some(Duration::from_secs(120)))?;
        let mut qmp = Self { reader: BufReader::new(writer.try_clone()?), writer };
        let greeting = qmp.message()?;
        if greeting.get("QMP").is_none() {
            bail!("unexpected greeting of QEMU's monitor");
        }
        qmp.call("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Stops all CPUs.
    ///
    /// # Errors
    /// If the monitor says so.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.call("stop", json!({})).map(drop)
    }

    /// Lets all CPUs go on.
    ///
    /// # Errors
    /// If the monitor says so.
    pub(crate) fn resume(&mut self) -> Result<()> {
        self.call("cont", json!({})).map(drop)
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
        if self.call("query-status", json!({}))?.get("status").is_some_and(|status| status == "shutdown") {
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
