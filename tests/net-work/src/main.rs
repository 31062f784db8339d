//! Both ends of networks under test: servers for a host, and clients and a disturber for its guests.

mod client;
mod disturb;
mod names;
mod pattern;
mod serve;

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Parser;
use clap::Subcommand;

/// Both ends of a network under test.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    work: Work,
}

#[derive(Debug, Subcommand)]
enum Work {
    /// Serves bytes over TCP and echoes datagrams, at the same port; says `ready` when it does
    Serve {
        /// The port, on every address.
        port: u16,
        /// Answers questions for names below `test`, too.
        #[arg(long)]
        names: bool,
    },
    /// Gets bytes from such a server and checks each
    Get {
        /// The server.
        server: SocketAddr,
        /// How many.
        bytes: u64,
    },
    /// Gives such a server bytes, which it checks
    Put {
        /// The server.
        server: SocketAddr,
        /// How many.
        bytes: u64,
    },
    /// Makes connections one after another, each for a few bytes
    Short {
        /// The server.
        server: SocketAddr,
        /// How many.
        connections: u32,
    },
    /// Has datagrams echoed, and checks them
    Datagrams {
        /// The server.
        server: SocketAddr,
        /// How many.
        count: u32,
        /// How large each is.
        bytes: usize,
    },
    /// Sends frames that no driver and no stack would
    Disturb {
        /// The adapter.
        adapter: String,
        /// How many.
        frames: u32,
        /// Another number gives other frames.
        seed: u64,
    },
}

fn main() -> ExitCode {
    match work(Arguments::parse().work) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("covisor-net-work: {error}");
            ExitCode::FAILURE
        }
    }
}

fn work(work: Work) -> io::Result<()> {
    match work {
        Work::Serve { port, names } => serve::serve(port, names),
        Work::Get { server, bytes } => client::get(server, bytes),
        Work::Put { server, bytes } => client::put(server, bytes),
        Work::Short { server, connections } => client::short(server, connections),
        Work::Datagrams { server, count, bytes } => client::datagrams(server, count, bytes),
        Work::Disturb { adapter, frames, seed } => disturb::disturb(&adapter, frames, seed),
    }
}
