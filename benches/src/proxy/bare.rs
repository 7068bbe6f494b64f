//! A loop that does nothing but `splice(2)`: two threads for a connection, one for each direction.

use std::io::Result;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

const PIPE: usize = 1 << 20;

/// Serves until it is killed.
///
/// # Errors
/// When the socket cannot be had.
pub fn serve(listen: SocketAddr, to: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen)?;
    loop {
        let (device, _) = listener.accept()?;
        std::thread::spawn(move || {
            let server = TcpStream::connect(to)?;
            device.set_nodelay(true)?;
            server.set_nodelay(true)?;
            let (from, to) = (device.try_clone()?, server.try_clone()?);
            std::thread::spawn(move || pump(&to, &from));
            pump(&device, &server)
        });
    }
}

fn pump(from: &TcpStream, to: &TcpStream) -> Result<()> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    fcntl_setpipe_size(&write, PIPE)?;
    loop {
        let mut held = splice(from, None, &write, None, PIPE, SpliceFlags::MOVE)?;
        if held == 0 {
            return to.shutdown(Shutdown::Write);
        }
        while held > 0 {
            held -= splice(&read, None, to, None, held, SpliceFlags::MOVE)?;
        }
    }
}
