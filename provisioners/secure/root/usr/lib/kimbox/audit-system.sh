# shellcheck shell=sh
# shellcheck disable=SC2154,SC2016 # some of it comes from `audit`, which sources this; awk has variables of its own
# Kernel settings, running services, installed packages.

# --- kernel

# One line for each setting: its name below /proc/sys, severity, number, and the accepted values. `*` is each network interface
# except the loopback, and `default`: which of them counts beside `all` differs between settings.
SETTINGS="kernel/randomize_va_space medium 1.5.1 2
kernel/yama/ptrace_scope medium 1.5.2 1 2 3
fs/suid_dumpable medium 1.5.3 0
fs/protected_hardlinks medium none 1
fs/protected_symlinks medium none 1
fs/protected_fifos medium none 1 2
fs/protected_regular medium none 1 2
kernel/kptr_restrict medium none 1 2
kernel/dmesg_restrict medium none 1
kernel/unprivileged_bpf_disabled medium none 1 2
kernel/kexec_load_disabled medium none 1
kernel/modules_disabled medium none 1
kernel/sysrq medium none 0
kernel/perf_event_paranoid low none 2 3 4
net/core/bpf_jit_harden low none 1 2
net/ipv4/ip_forward medium 3.3.1 0
net/ipv6/conf/*/forwarding medium 3.3.1 0
net/ipv4/conf/*/send_redirects medium 3.3.2 0
net/ipv4/icmp_ignore_bogus_error_responses low 3.3.3 1
net/ipv4/icmp_echo_ignore_broadcasts low 3.3.4 1
net/ipv4/conf/*/accept_redirects medium 3.3.5 0
net/ipv6/conf/*/accept_redirects medium 3.3.5 0
net/ipv4/conf/all/secure_redirects low 3.3.6 0
net/ipv4/conf/all/rp_filter medium 3.3.7 1
net/ipv4/conf/*/accept_source_route medium 3.3.8 0
net/ipv6/conf/*/accept_source_route medium 3.3.8 0 -1
net/ipv4/conf/all/log_martians low 3.3.9 1
net/ipv4/tcp_syncookies medium 3.3.10 1
net/ipv6/conf/*/accept_ra medium 3.3.11 0"

set --
while read -r name _; do
	# shellcheck disable=SC2231 # that is the pattern
	for file in /proc/sys/$name; do
		[ ! -e "$file" ] || set -- "$@" "$file"
	done
done <<END
$SETTINGS
END
# By grep, not by the shell, which reads byte by byte: the kernel returns only the first byte of a number then.
settings=$(grep -s -H '' "$@" /dev/null | awk -v table="$SETTINGS" "$awk_list"'
	BEGIN {
		rows = split(table, row, "\n")
		for (i = 1; i <= rows; i++) {
			n = split(row[i], word, " "); names[i] = word[1]; head[i] = word[1] "|" word[2] "|" (word[3] == "none" ? "" : word[3])
			for (k = 4; k <= n; k++) well[i] = well[i] (k > 4 ? " " : "") word[k]
			number[word[1]] = i
		}
	}
	{
		file = $0; sub(/:.*/, "", file); sub("^/proc/sys/", "", file); value = $0; sub(/^[^:]*:/, "", value)
		if (file ~ /\/conf\/lo\//) next
		name = file
		if (!(name in number)) sub(/\/conf\/[^\/]*\//, "/conf/*/", name)
		i = number[name]; had[i] = 1
		if (!index(" " well[i] " ", " " value " ")) put(i, file " = " value)
	}
	END {
		for (i = 1; i <= rows; i++)
			print head[i] "|" well[i] "|" (had[i] ? "yes" : "no") "|" all(i)
	}')
while IFS='|' read -r name severity cis expected had found; do
	id=kernel rest=$name/ first=${expected%% *}
	while [ -n "$rest" ]; do
		case ${rest%%/*} in
		kernel | net | conf | \*) ;;
		*) id=$id.${rest%%/*} ;;
		esac
		rest=${rest#*/}
	done
	title="Kernel: ${id#kernel.}"
	if [ "$had" = no ]; then
		row "$id" "$severity" "$cis" "$title" skip "$expected" "this kernel has no such setting" ""
	else
		none "$id" "$severity" "$cis" "$title" "$expected" "$found" "echo $first >/proc/sys/$name"
	fi
done <<END
$settings
END

# User namespaces give every account the rights of root over parts of the kernel that are otherwise root's alone. Any one of these
# settings prevents them: Debian's own, a limit of none, AppArmor's.
user_namespaces='every account may create them'
for setting in kernel/unprivileged_userns_clone=0 user/max_user_namespaces=0 kernel/apparmor_restrict_unprivileged_userns=1; do
	value=''
	{ read -r value <"/proc/sys/${setting%=*}"; } 2>/dev/null
	[ "$value" != "${setting#*=}" ] || user_namespaces=''
done
none kernel.user_namespaces medium "" "Accounts that may create user namespaces" "root alone" "$user_namespaces" \
	"echo 0 >/proc/sys/kernel/unprivileged_userns_clone"

# AppArmor is a part of Debian's kernel. Without profiles it confines nothing; a profile in another mode than `enforce` only reports.
enabled=''
{ read -r enabled </sys/module/apparmor/parameters/enabled; } 2>/dev/null
if [ "$enabled" = Y ]; then
	row kernel.apparmor medium 1.3.1.2 "AppArmor is enabled" pass "enabled" "enabled" ""
	begin
	profiles=0
	while read -r line; do
		profiles=$((profiles + 1))
		case $line in
		*' (enforce)') ;;
		*) item "$line" ;;
		esac
	done 2>/dev/null </sys/kernel/security/apparmor/profiles
	ended
	if [ "$profiles" -eq 0 ]; then
		row kernel.apparmor_profiles medium 1.3.1.4 "Profiles of AppArmor that do not confine" skip "none" "no profile is loaded" ""
	else
		none kernel.apparmor_profiles medium 1.3.1.4 "Profiles of AppArmor that do not confine" "none" "$found" "aa-enforce PROFILE"
	fi
else
	row kernel.apparmor medium 1.3.1.2 "AppArmor is enabled" fail "enabled" "not enabled" "start the box without apparmor=0 or security="
	row kernel.apparmor_profiles medium 1.3.1.4 "Profiles of AppArmor that do not confine" skip "none" "AppArmor is not enabled" ""
fi

# Protocols with known vulnerabilities, whose modules any account can load by opening a socket.
begin
while read -r module _; do
	case $module in
	dccp | tipc | rds | sctp) item "$module" ;;
	esac
done 2>/dev/null </proc/modules
ended
none kernel.protocols low 3.2.4 "Modules of rare network protocols" "none of dccp, tipc, rds, sctp" "$found" "start the box again"

# Core dumps: discarded, or a hard limit of none for everybody.
pattern='' limited=no
{ read -r pattern </proc/sys/kernel/core_pattern; } 2>/dev/null
for file in /etc/security/limits.conf /etc/security/limits.d/*.conf; do
	[ -r "$file" ] || continue
	while read -r who kind what value _; do
		case "$who $kind $what $value" in
		"* hard core 0" | "* - core 0") limited=yes ;;
		esac
	done <"$file"
done
case $pattern:$limited in
'|/bin/false'* | '|/usr/bin/false'* | :* | *:yes) row kernel.cores low 1.5.3 "Core dumps" pass "none" "none" "" ;;
*) row kernel.cores low 1.5.3 "Core dumps" fail "none" "core_pattern is $pattern, and limits.conf sets none" \
	"* hard core 0 in /etc/security/limits.d" ;;
esac

# --- what runs

# The services and timers of every box; those that systemd starts for a login, if somebody may log in; sshd, if it may be reached.
SERVICES="dbus provisiond systemd-journald systemd-logind systemd-networkd systemd-resolved systemd-timesyncd \
systemd-udevd unattended-upgrades chrony"
TIMERS="systemd-tmpfiles-clean logrotate man-db kimbox-audit kimbox-outbound"
[ -z "$KIMBOX_UPDATES" ] || TIMERS="$TIMERS apt-daily apt-daily-upgrade"

units=$(systemctl list-units --type=service,timer,scope --all --plain --no-legend --no-pager --full 2>/dev/null)
failed='' timers='' clocks='' logs='' transient=''
begin
while read -r unit _ active sub _; do
	[ "$active" != failed ] || failed="$failed${failed:+, }$unit"
	case $unit:$sub in
	kimbox-*.service:running) ;;
	systemd-journald.service:running) logs=$unit ;;
	systemd-timesyncd.service:running | chrony.service:running) clocks="$clocks${clocks:+, }$unit" ;;
	ssh.service:running | ssh@*.service:running) [ -n "$KIMBOX_INBOUND$KIMBOX_OPERATOR" ] || item "$unit" ;;
	user@*.service:running) [ -n "$allowed" ] || item "$unit" ;;
	*.service:running)
		has "${unit%.service}" "$SERVICES" || has "$unit" "$KIMBOX_SERVICES" || has "${unit%.service}" "$KIMBOX_SERVICES" ||
			item "$unit"
		;;
	init.scope:*) ;;
	session-*.scope:*) [ -n "$allowed" ] || transient="$transient${transient:+, }$unit" ;;
	*.scope:*) [ "$active" != active ] || transient="$transient${transient:+, }$unit" ;;
	*.timer:*)
		[ "$active" = active ] || continue
		has "${unit%.timer}" "$TIMERS" || has "$unit" "$KIMBOX_SERVICES" || timers="$timers${timers:+, }$unit"
		;;
	esac
done <<END
$units
END
ended
if [ -z "$units" ]; then
	found="systemctl says nothing" timers=$found failed=$found transient=$found
fi
none service.running medium "" "Services that run" "those of every box${KIMBOX_SERVICES:+, and $KIMBOX_SERVICES}" "$found" \
	"systemctl mask --now UNIT, or name it in the role's services"
none service.timers medium "" "Timers" "those of every box${KIMBOX_SERVICES:+, and $KIMBOX_SERVICES}" "$timers" \
	"systemctl mask --now UNIT, or name it in the role's services"
none service.failed low "" "Units that failed" "none" "$failed" "systemctl status UNIT"

# Units that were made while the box runs, as by systemd-run(1). systemd keeps their files here, also those of a login's scope.
for file in /run/systemd/transient/* /run/systemd/system/*; do
	[ -e "$file" ] || [ -L "$file" ] || continue
	unit=${file##*/}
	case $unit in
	session-*.scope) [ -z "$allowed" ] || continue ;;
	esac
	case ", $transient, " in
	*", $unit, "*) continue ;;
	esac
	transient="$transient${transient:+, }$unit"
done
none service.transient medium "" "Units that were made while the box runs" "none${allowed:+ but logins}" "$transient" "systemctl stop UNIT"

# The clock. timesyncd notes in a file that it is synchronised; chronyc(1) prints the state of chrony as the last of its values.
CLOCK_S=900
case $clocks in
*systemd-timesyncd*) [ -e /run/systemd/timesync/synchronized ] && now=yes || now=no ;;
*chrony*)
	case $(timeout 10 chronyc -c tracking 2>/dev/null) in
	*,Normal | *,"Insert second" | *,"Delete second") now=yes ;;
	*) now=no ;;
	esac
	;;
*) now=nothing ;;
esac
up=''
{ read -r up _ </proc/uptime; } 2>/dev/null
up=${up%.*}
severity=low
[ -z "$KIMBOX_TIME" ] || severity=medium
case $now in
yes) row service.time "$severity" 2.3.1.1 "The clock is synchronised" pass "by timesyncd or chrony" "$clocks" "" ;;
no)
	if [ "${up:-$CLOCK_S}" -lt "$CLOCK_S" ]; then
		row service.time "$severity" 2.3.1.1 "The clock is synchronised" info "by timesyncd or chrony" "$clocks has just started" ""
	else
		row service.time "$severity" 2.3.1.1 "The clock is synchronised" fail "by timesyncd or chrony" \
			"$clocks has no answer${KIMBOX_TIME:+ of $KIMBOX_TIME}" "look at the servers in secure.time of the spec"
	fi
	;;
*)
	row service.time "$severity" 2.3.1.1 "The clock is synchronised" fail "by timesyncd or chrony" \
		"nothing sets it after the start of the box" "name servers in secure.time of the spec"
	;;
esac
if [ -n "$logs" ]; then
	row service.journal low 6.2.1.1.1 "The journal is kept" pass "systemd-journald.service" "$logs" ""
else
	row service.journal low 6.2.1.1.1 "The journal is kept" fail "systemd-journald.service" "it does not run" "systemctl start systemd-journald"
fi

# Jobs of cron and at. Those of base packages are exceptions: without cron they do not run.
begin
for file in /etc/cron.d/* /etc/cron.hourly/* /etc/cron.daily/* /etc/cron.weekly/* /etc/cron.monthly/* /etc/crontab \
	/var/spool/cron/crontabs/* /var/spool/cron/atjobs/*; do
	[ -e "$file" ] || continue
	case $file in
	/etc/cron.*/apt-compat | /etc/cron.*/dpkg | /etc/cron.*/e2scrub_all | /etc/cron.*/logrotate | /etc/cron.*/man-db)
		[ -e /usr/sbin/cron ] || continue
		;;
	esac
	item "$file"
done
ended
none service.cron medium 2.4.1.8 "Jobs of cron and at" "none" "$found" "remove the file"

# --- what is installed

# Servers, and clients with unencrypted protocols, each with its number in the benchmark.
UNWANTED="2.1.1:autofs 2.1.2:avahi-daemon 2.1.3:isc-dhcp-server 2.1.3:kea 2.1.4:bind9 2.1.5:dnsmasq 2.1.6:vsftpd 2.1.7:slapd \
2.1.8:dovecot-core 2.1.9:nfs-kernel-server 2.1.10:ypserv 2.1.11:cups 2.1.12:rpcbind 2.1.14:samba 2.1.15:snmpd 2.1.16:tftpd-hpa \
2.1.17:squid 2.1.18:apache2 2.1.18:nginx 2.1.19:xinetd 2.1.20:xserver-common 2.2.1:nis 2.2.2:rsh-client 2.2.3:talk 2.2.4:telnet \
2.2.4:inetutils-telnet 2.2.4:telnetd 2.2.5:ldap-utils 2.2.6:ftp 2.2.6:tnftp 1.5.4:prelink 1.5.5:apport"

packages=$(awk -v unwanted="$UNWANTED" -v removed="$KIMBOX_REMOVED" "$awk_list"'
	BEGIN {
		n = split(unwanted, word, " ")
		for (i = 1; i <= n; i++) { split(word[i], part, ":"); number[part[2]] = part[1] }
		n = split(removed, word, " ")
		for (i = 1; i <= n; i++) gone[word[i]] = 1
	}
	$1 == "Package:" { name = $2 }
	$1 == "Status:" && $4 == "installed" {
		installed++
		if (name in number) put("unwanted", name " (" number[name] ")")
		if (name in gone) put("removed", name)
	}
	END { print "unwanted " all("unwanted"); print "removed " all("removed"); print "installed " (installed + 0) }' \
	/var/lib/dpkg/status 2>/dev/null)
unwanted="dpkg says nothing" removed=$unwanted installed=0
while read -r kind list; do
	case $kind in
	unwanted) unwanted=$list ;;
	removed) removed=$list ;;
	installed) installed=$list ;;
	esac
done <<END
$packages
END
none package.unwanted medium 2.1.22 "Servers that no box needs, and clients that speak in the clear" "none" "$unwanted" \
	"name the package in secure.remove of the spec"
if [ -n "$KIMBOX_REMOVED" ]; then
	none package.removed medium "" "Packages that the spec removes" "none of $KIMBOX_REMOVED" "$removed" "apt-get purge PACKAGE"
else
	row package.removed medium "" "Packages that the spec removes" skip "none" "the spec names none" ""
fi
row package.count low "" "Packages" info "as few as the role needs" "$installed installed" ""

# Known updates. The box has package lists only if somebody ran apt; the base gets updates with a new image.
UPDATES_S=60
lists=$(apt-config shell lists Dir::State::Lists/d 2>/dev/null)
lists=${lists#lists=\'}
lists=${lists%\'}
set -- "${lists%/}"/*Packages*
if [ -n "$lists" ] && [ -e "$1" ]; then
	updates=$(timeout "$UPDATES_S" apt-get -s -q -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o Debug::NoLocking=1 upgrade 2>/dev/null |
		awk "$awk_list"'$1 == "Inst" && tolower($0) ~ /security/ { put("", $2) } END { print all("") }')
	if [ -n "$KIMBOX_UPDATES" ]; then
		none package.updates medium 1.2.2.1 "Security updates that wait" "none" "$updates" "systemctl start apt-daily-upgrade.service"
	else
		row package.updates medium 1.2.2.1 "Security updates that wait" info "none" "${updates:-none}" "build a new image: kimbox lock --update packages"
	fi
else
	row package.updates medium 1.2.2.1 "Security updates that wait" skip "none" "the box has no lists of packages" ""
fi
