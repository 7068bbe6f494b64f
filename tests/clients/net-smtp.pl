#!/usr/bin/perl
# One letter with Perl's Net::SMTP. What each variable is: ../tests/clients.rs.
use strict;
use warnings;
use Net::SMTP;

my $smtp = Net::SMTP->new(
    'localhost',
    Port          => $ENV{PORT},
    LocalAddr     => $ENV{SOURCE},
    Hello         => 'printer.example',
    Timeout       => 30,
    Debug         => 1,
    SSL           => $ENV{MODE} eq 'implicit' ? 1 : 0,
    SSL_ca_file   => $ENV{CA},
) or die "refused: no connection: $@\n";

sub step {
    my ($name, $done) = @_;
    return if $done;
    my ($code, $text) = ($smtp->code, join '', $smtp->message);
    die "refused: $name: $code $text\n";
}

step('STARTTLS', $smtp->starttls(SSL_ca_file => $ENV{CA})) if $ENV{MODE} eq 'starttls';
if ($ENV{LOGIN_USER}) {
    open my $secret, '<', $ENV{LOGIN_PASSWORD_FILE} or die "$!\n";
    chomp(my $password = <$secret>);
    step('AUTH', $smtp->auth($ENV{LOGIN_USER}, $password));
}
step('MAIL', $smtp->mail($ENV{MAIL_FROM}));
step('RCPT', $smtp->to($ENV{RCPT}));
step('DATA', $smtp->data);
open my $letter, '<', $ENV{LETTER} or die "$!\n";
while (my $line = <$letter>) {
    $smtp->datasend($line);
}
step('end of data', $smtp->dataend);
$smtp->quit;
