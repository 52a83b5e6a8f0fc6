//! The versions of the CNI specification, and what each of them has.

use std::fmt;
use std::str::FromStr;

/// A version of the specification that these plugins speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// 0.1.0: one address a family, no interfaces. A configuration without `cniVersion` means this one.
    V0_1_0,
    /// 0.2.0: adds VERSION.
    V0_2_0,
    /// 0.3.0: a result has interfaces, and lists of addresses and routes.
    V0_3_0,
    /// 0.3.1: what flannel's installed configuration says.
    V0_3_1,
    /// 0.4.0: adds CHECK.
    V0_4_0,
    /// 1.0.0: an address does not say its family.
    V1_0_0,
    /// 1.1.0: adds GC and STATUS, and MTUs in results.
    V1_1_0,
}

impl Version {
    /// All, oldest first.
    pub const ALL: [Self; 7] =
        [Self::V0_1_0, Self::V0_2_0, Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// The newest.
    pub const NEWEST: Self = Self::V1_1_0;

    /// As it is written in a configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Version {
    type Err = ();

    /// An empty text means 0.1.0.
    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "" => Ok(Self::V0_1_0),
            _ => Self::ALL.into_iter().find(|version| version.as_str() == text).ok_or(()),
        }
    }
}
