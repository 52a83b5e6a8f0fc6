//! What the demo is doing: a moving line on a terminal, plain lines elsewhere. Always on standard error.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use lab::race::{Doing, Step};

/// The line. Colours follow `NO_COLOR` and whether standard error is a terminal.
pub(super) struct Progress {
    /// `None` where standard error is no terminal.
    bar: Option<ProgressBar>,
    last: String,
}

impl Progress {
    pub(super) fn new() -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { bar, last: String::new() }
    }

    /// Says what is being waited for; the same words twice are said once.
    pub(super) fn say(&mut self, words: String) {
        if words == self.last {
            return;
        }
        match &self.bar {
            Some(bar) => bar.set_message(words.clone()),
            // Progress that nobody can read is no reason to end.
            None => writeln!(io::stderr(), "{words}").unwrap_or_default(),
        }
        self.last = words;
    }

    /// A step of the race.
    pub(super) fn step(&mut self, step: &Step<'_>) {
        let Doing::Measuring(scenario) = step.doing else {
            return self.say(format!("race: making two nodes for {}", step.way));
        };
        if let Some(bar) = &self.bar {
            if bar.length().is_none()
                && let Ok(style) = ProgressStyle::with_template("{spinner} race [{bar:30}] {msg}")
            {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_length(step.planned as u64);
            bar.set_position(step.done as u64);
        }
        let at = if self.bar.is_some() {
            String::new()
        } else {
            format!("race {}/{}: ", step.done + 1, step.planned)
        };
        self.say(format!("{at}{}, {}", step.way, scenario.title()));
    }

    /// Lets something be printed while the line stands aside.
    pub(super) fn aside<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Takes the line away.
    pub(super) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
