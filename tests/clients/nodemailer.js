// One letter with nodemailer. What each variable is: ../tests/clients.rs.
'use strict';
const fs = require('fs');
const nodemailer = require('nodemailer');

const e = process.env;
const transport = nodemailer.createTransport({
  host: '127.0.0.1',
  port: Number(e.PORT),
  localAddress: e.SOURCE,
  name: 'printer.example',
  secure: e.MODE === 'implicit',
  requireTLS: e.MODE === 'starttls',
  ignoreTLS: e.MODE === 'plain',
  tls: { ca: fs.readFileSync(e.CA), servername: 'localhost' },
  auth: e.LOGIN_USER
    ? { user: e.LOGIN_USER, pass: fs.readFileSync(e.LOGIN_PASSWORD_FILE, 'utf8').trim() }
    : undefined,
});
transport
  .sendMail({ envelope: { from: e.MAIL_FROM, to: [e.RCPT] }, raw: fs.readFileSync(e.LETTER) })
  .then((info) => console.log(info.response))
  .catch((error) => {
    console.log(`refused: ${error.response || error}`);
    process.exitCode = 1;
  });
