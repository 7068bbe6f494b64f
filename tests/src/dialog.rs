//! A plain SMTP dialogue over a socket, with a source address of the device's own: for tests that must see every
//! byte. Clients that nobody here wrote are in `clients/`.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

/// One connection.
pub struct Dialog {
    pub stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Dialog {
    /// Connects from `source` to `target`.
    ///
    /// # Errors
    /// When the connection is refused.
    pub fn connect(source: IpAddr, target: SocketAddr) -> std::io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
        socket.connect_timeout(&target.into(), Duration::from_secs(10))?;
        let stream: TcpStream = socket.into();
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.set_nodelay(true)?;
        let reader = BufReader::new(stream.try_clone()?);
        Ok(Self { stream, reader })
    }

    /// Reads one reply, all of its lines.
    ///
    /// # Errors
    /// When the connection ends or times out.
    pub fn reply(&mut self) -> std::io::Result<String> {
        let mut whole = String::new();
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line)? == 0 {
                return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "closed"));
            }
            whole.push_str(&line);
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(whole.trim_end().to_owned());
            }
        }
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends a line and reads the reply.
    ///
    /// # Errors
    /// When the connection ends or times out.
    pub fn command(&mut self, line: &str) -> std::io::Result<String> {
        self.send(format!("{line}\r\n").as_bytes())?;
        self.reply()
    }
}
