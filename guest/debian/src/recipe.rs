//! How a Debian is made by debootstrap: the part that is the same whatever it is for.

/// The beginning of a script for `sh`: functions that make a tree of packages. What they get by the environment is said at its
/// top.
pub const RECIPE: &str = include_str!("recipe.sh");
