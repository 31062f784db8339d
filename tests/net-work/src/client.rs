//! The clients. Each says on standard output what it did, and how long it took by its own clock.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::time::Duration;
use std::time::Instant;

use crate::pattern;
use crate::serve;
use crate::serve::GET;
use crate::serve::PUT;
use crate::serve::RIGHT;

/// Bytes of a short connection.
const FEW: u64 = 100;
/// How long an echo is waited for, and how often it is asked for: datagrams may be lost.
const PATIENCE: Duration = Duration::from_secs(2);
const TRIES: u32 = 5;

fn request(server: SocketAddr, kind: u8, bytes: u64) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(server)?;
    let mut request = vec![kind];
    request.extend(bytes.to_be_bytes());
    stream.write_all(&request)?;
    Ok(stream)
}

fn get_quietly(server: SocketAddr, bytes: u64) -> io::Result<()> {
    let mut stream = request(server, GET, bytes)?;
    serve::take(&mut stream, bytes)?;
    match stream.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(io::Error::other("the server gives more than was asked for")),
    }
}

/// Gets bytes.
pub(crate) fn get(server: SocketAddr, bytes: u64) -> io::Result<()> {
    let began = Instant::now();
    get_quietly(server, bytes)?;
    println!("got {bytes} bytes in {} ms", began.elapsed().as_millis());
    Ok(())
}

/// Gives bytes.
pub(crate) fn put(server: SocketAddr, bytes: u64) -> io::Result<()> {
    let began = Instant::now();
    let mut stream = request(server, PUT, bytes)?;
    serve::give(&mut stream, bytes)?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    if answer != [RIGHT] {
        return Err(io::Error::other("the server did not get what was given"));
    }
    println!("gave {bytes} bytes in {} ms", began.elapsed().as_millis());
    Ok(())
}

/// Makes short connections.
pub(crate) fn short(server: SocketAddr, connections: u32) -> io::Result<()> {
    let began = Instant::now();
    for _ in 0..connections {
        get_quietly(server, FEW)?;
    }
    println!("made {connections} connections in {} ms", began.elapsed().as_millis());
    Ok(())
}

/// Has datagrams echoed.
pub(crate) fn datagrams(server: SocketAddr, count: u32, bytes: usize) -> io::Result<()> {
    let socket = match server {
        SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?,
        SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?,
    };
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let began = Instant::now();
    let (mut sent, mut received) = (vec![0; bytes], vec![0; bytes + 1]);
    for number in 0..count {
        pattern::fill(&mut sent, u64::from(number) << 16);
        let mut tries = 0;
        loop {
            socket.send(&sent)?;
            match socket.recv(&mut received) {
                Ok(length) if received[..length] == sent[..] => break,
                Ok(_) => return Err(io::Error::other("an echo is not what was sent")),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && tries < TRIES => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }
    println!("{count} datagrams came back in {} ms", began.elapsed().as_millis());
    Ok(())
}
