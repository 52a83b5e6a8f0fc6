//! The lines of an environment file: `KEY=value`, with what dotenv readers allow around it.
use super::ParseError;

/// One assignment and where it stands.
pub(super) struct Assignment<'a> {
    /// Counted from 1.
    pub(super) line: usize,
    pub(super) key: &'a str,
    /// Without quotes and the blanks around it.
    pub(super) value: &'a str,
}

impl Assignment<'_> {
    /// The error that this value is not what was expected.
    pub(super) fn problem(&self, expected: &str) -> ParseError {
        let problem = format!("{} is {}, expected {expected}", self.key, quoted(self.value));
        ParseError::Line { line: self.line, problem }
    }
}

/// All assignments in order. Blank lines and comments are left out; anything else that is no assignment is an error.
pub(super) fn assignments(text: &str) -> Result<Vec<Assignment<'_>>, ParseError> {
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let assignment = assignment(line).map_err(|expected| ParseError::Line {
            line: number,
            problem: format!("{}: {expected}", quoted(line)),
        })?;
        found.push(Assignment { line: number, ..assignment });
    }
    Ok(found)
}

fn assignment(line: &str) -> Result<Assignment<'_>, &'static str> {
    let line = line.strip_prefix("export").filter(|rest| rest.starts_with([' ', '\t'])).unwrap_or(line);
    let (key, value) = line.split_once(['=', ':']).ok_or("expected KEY=value")?;
    let key = key.trim();
    if key.is_empty() || !key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.') {
        return Err("expected a key of letters, digits and underscores before the =");
    }
    Ok(Assignment { line: 0, key, value: unquoted(value.trim())? })
}

/// The value without its quotes or the comment behind it.
fn unquoted(value: &str) -> Result<&str, &'static str> {
    let Some(quote) = value.chars().next().filter(|first| ['"', '\''].contains(first)) else {
        let comment = value.find(" #").or_else(|| value.find("\t#")).unwrap_or(value.len());
        return Ok(value[..comment].trim_end());
    };
    let (inside, behind) = value[1..].split_once(quote).ok_or("the closing quote is missing")?;
    let behind = behind.trim_start();
    if behind.is_empty() || behind.starts_with('#') {
        Ok(inside)
    } else {
        Err("text behind the closing quote")
    }
}

/// A piece of the file in a message: quoted, on one line, and no longer than a message should be.
fn quoted(text: &str) -> String {
    const MOST: usize = 60;
    let mut shown: String = text.chars().take(MOST).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("{shown:?}")
}
