# jobprogram.pm - runs the program of a job to its end. A part of `job`, which loads it.
#
# The program runs in a control group of its own: the kernel counts what all of its processes use, and none is left at its end. A unit
# of systemd would do the same, and would need four programs and messages between them, which take longer than many jobs.
package JobProgram;
use strict;
use warnings;

my $CGROUPS = '/sys/fs/cgroup';

# Interval between two calls of the function that sends new output, in seconds, and that while it has more to send.
my $POLL_S = 0.2;
my $MORE_S = 0.02;

# Time for sending the rest of the output after the end of the program, in seconds. The host may take none.
my $REST_S = 30;

# Time for processes to end after SIGTERM, in seconds.
my $STOP_S = 10;

# Variables of the program: these and no others.
my %ENVIRONMENT = (PATH => '/sbin:/usr/sbin:/bin:/usr/bin', USER => 'root', PWD => '/', LANG => 'en_US.UTF-8');

# Numbers of system calls on x86-64 (asm/unistd_64.h), a resource of setrlimit(2), and a flag of waitpid(2).
my ($SYS_SETSID, $SYS_SETRLIMIT, $SYS_PIDFD_OPEN) = (112, 160, 434);
my ($RLIMIT_CORE, $WNOHANG) = (4, 1);

my $group = ''; # the control group of the program; empty if there can be none
my $child;      # the program, which is the leader of its session

sub pause { select undef, undef, undef, $_[0] }

sub slurp {
	open my $file, '<', $_[0] or return '';
	local $/;
	return <$file> // '';
}

# set PATH, TEXT: writes to a file of the kernel; returns whether that succeeded
sub set {
	my ($path, $text) = @_;
	open my $file, '>', $path or return 0;
	return defined syswrite $file, $text;
}

# make_group: makes the control group. The kernel counts memory only in a group whose parent has no processes of its own, so those of
# this unit move to a group beside it.
sub make_group {
	my ($own) = slurp('/proc/self/cgroup') =~ /^0::(\/.+)$/m or return;
	my $top = "$CGROUPS$own";
	return unless -e "$top/cgroup.procs";
	mkdir "$top/host";
	for my $tries (1 .. 10) { # a process may start another one meanwhile
		my @pids = split ' ', slurp("$top/cgroup.procs") or last;
		set("$top/host/cgroup.procs", $_) for @pids;
	}
	set("$top/cgroup.subtree_control", '+memory');
	mkdir "$top/program" or return;
	$group = "$top/program";
}

# become_program ERRORS, LOG, COMMAND...: the new process becomes the program, or writes the reason why not
sub become_program {
	my ($errors, $log, @command) = @_;
	if ($group ne '' && !set("$group/cgroup.procs", '0')) { syswrite $errors, "control group: $!"; return }
	set('/proc/self/oom_score_adj', '0');
	setpriority 0, 0, 0;
	syscall $SYS_SETSID;
	my $none = pack 'QQ', 0, 0;
	syscall $SYS_SETRLIMIT, $RLIMIT_CORE, $none;
	chdir '/';
	open STDIN, '<', '/dev/null' or return;
	open STDOUT, '>>', $log or return;
	open STDERR, '>&', \*STDOUT or return;
	%ENV = %ENVIRONMENT;
	no warnings 'exec';
	exec { $command[0] } @command;
	syswrite $errors, "$!";
}

# start LOG, COMMAND...: starts the program. Returns why the kernel cannot start it, or nothing.
sub start {
	pipe my $reader, my $errors or return "pipe: $!";
	defined($child = fork) or return "fork: $!";
	if (!$child) {
		close $reader;
		become_program($errors, @_); # the kernel closes the pipe when the program starts
		kill 'KILL', $$;             # not `exit`, which would run what this program has planned for its end
	}
	close $errors;
	local $/;
	return <$reader> // '';
}

# signal NAME: sends a signal to all processes of the program
sub signal {
	my ($name) = @_;
	if ($group eq '') { kill $name, -$child; return }
	return if $name eq 'KILL' && set("$group/cgroup.kill", '1');
	kill $name, split ' ', slurp("$group/cgroup.procs");
}

# are_left: whether processes of the program run. Those that have ended, and wait for their parent, count for no group.
sub are_left { return $group eq '' ? kill(0, -$child) : slurp("$group/cgroup.events") =~ /^populated 1$/m }

# stop: ends all processes of the program
sub stop {
	return unless are_left();
	signal('TERM');
	for (1 .. $STOP_S / 0.05) { pause 0.05; return unless are_left() }
	signal('KILL');
	for (1 .. $STOP_S / 0.05) { return unless are_left(); signal('KILL'); pause 0.05 }
}

# await TIMEOUT, SEND: waits for the end of the program. Returns its status, as in wait(2), and whether the time limit has ended it.
sub await {
	my ($timeout, $send) = @_;
	my ($status, $is_late) = (undef, 0);
	my $has_ended = sub {
		$status = $? if !defined $status && waitpid($child, $WNOHANG) == $child;
		return defined $status;
	};
	local $SIG{ALRM} = sub {
		return if $has_ended->(); # before the time limit, while output was sent
		$is_late = 1;
		signal('TERM');
		$SIG{ALRM} = sub { signal('KILL') };
		alarm $STOP_S;
	};
	alarm $timeout if $timeout =~ /^[1-9][0-9]*$/;
	my $handle = syscall $SYS_PIDFD_OPEN, $child, 0; # can be read when the process has ended
	until ($has_ended->()) {
		my $pause_s = $send->() ? $MORE_S : $POLL_S;
		my $ended = '';
		vec($ended, $handle, 1) = 1 if $handle >= 0;
		select $ended, undef, undef, $handle >= 0 ? $pause_s : $MORE_S;
	}
	alarm 0;
	return ($status, $is_late);
}

# run TIMEOUT, LOG, SEND, PROGRAM, ARGUMENT...: runs a program to its end, and ends all of its processes. TIMEOUT is in seconds, or
# `infinity`. LOG gets the output. SEND is a function that sends some of it, and returns whether there is more. Returns how the program
# ended, by these names:
#
#   failure       why the kernel cannot start it, or empty
#   code, number  `exited` and the exit status, or `killed` and the signal
#   result        success, exit-code, signal, core-dump, oom-kill or timeout, as systemd has them
#   memory_bytes  maximum memory of all processes of the program, or `null`
#   cpu_ns        processor time of all processes of the program, or `null`
sub run {
	my ($timeout, $log, $send, @command) = @_;
	my $failure = start($log, @command);
	return (failure => $failure, memory_bytes => 'null', cpu_ns => 'null') if !$child;
	my ($status, $is_late) = await($timeout, $send);
	stop() if $failure eq '';
	for (my $tries = $REST_S / $MORE_S; $send->() && $tries > 0; $tries--) { pause $MORE_S }
	my ($number, $signal, $is_dumped) = ($status >> 8, $status & 127, $status & 128);
	my ($killed) = slurp("$group/memory.events") =~ /^oom_kill ([0-9]+)$/m;
	my ($memory_bytes) = slurp("$group/memory.peak") =~ /^([0-9]+)$/m;
	my ($cpu_us) = slurp("$group/cpu.stat") =~ /^usage_usec ([0-9]+)$/m;
	my $result =
		  $is_late ? 'timeout'
		: $killed  ? 'oom-kill'
		: $signal  ? ($is_dumped ? 'core-dump' : 'signal')
		: $number  ? 'exit-code'
		:            'success';
	return (
		failure => $failure,
		code => $signal ? 'killed' : 'exited',
		number => $signal || $number,
		result => $result,
		memory_bytes => $memory_bytes // 'null',
		cpu_ns => defined $cpu_us ? $cpu_us * 1000 : 'null',
	);
}

1;
