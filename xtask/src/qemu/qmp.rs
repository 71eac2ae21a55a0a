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
        writer.set_read_timeout(Some(Duration::from_secs(600)))?;
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
        // Where an answer came too late, the next one belongs to the question before: then it goes on whatever it says.
        let off = result.is_ok() && self.status().is_ok_and(|status| status != "paused");
        let going = if off { Ok(()) } else { self.call("cont", json!({})).map(drop) };
        result.and_then(|done| going.map(|()| done))
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// What a monitor whose machine is in this state was told, while something was done and failed or not.
    fn told(status: &str, held: bool) -> (bool, Vec<String>) {
        let socket = std::env::temp_dir().join(format!("freehold-{}-{status}-{held}.qmp", std::process::id()));
        let listener = UnixListener::bind(&socket).unwrap();
        let answer = format!("{{\"return\": {{\"status\": \"{status}\"}}}}");
        let monitor = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            writeln!(stream, "{{\"QMP\": {{}}}}").unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let commands = lines.map_while(Result::ok).map(|line| {
                let _ = writeln!(stream, "{answer}");
                let request: Value = serde_json::from_str(&line).unwrap();
                request["execute"].as_str().unwrap().to_owned()
            });
            commands.collect()
        });
        let mut qmp = Qmp::open(&socket, Arc::default()).unwrap();
        let done = qmp.while_stopped(|_| if held { Ok(()) } else { bail!("too late") });
        drop(qmp);
        let _ = std::fs::remove_file(&socket);
        (done.is_ok(), monitor.join().unwrap())
    }

    #[test]
    fn a_machine_goes_on_whatever_came_of_its_stop() {
        let went_on = |(done, told): (bool, Vec<String>)| (done, told.contains(&"cont".to_owned()));
        assert_eq!(went_on(told("paused", true)), (true, true));
        assert_eq!(went_on(told("paused", false)), (false, true));
        assert_eq!(went_on(told("", false)), (false, true), "an answer to another question");
        assert_eq!(went_on(told("shutdown", true)), (true, false), "it switched itself off");
    }
}
