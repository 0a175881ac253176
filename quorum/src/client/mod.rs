//! What the clients of tables and registers hold.

mod registers;
mod session;
mod table;
mod token;
mod window;

pub use self::registers::{RegisterConfig, RegisterError, Registers};
pub use self::session::{Session, SessionError};
pub use self::table::{Table, TableError};
pub use self::token::{SessionToken, TokenError};
