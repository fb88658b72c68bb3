# shellcheck shell=sh
# shellcheck disable=SC2154,SC2016 # some of it comes from `audit`, which sources this; awk has variables of its own
# What is on the disks: permissions, secrets, mount options.

# Programs that may run as root or with the rights of a group: those of Debian's base packages, of util-linux and shadow, dbus's
# service helper, ssh-keysign, PAM's password check, and the two with the groups of ssh-agent and cron. sudo, if somebody may use it.
SET_UID="/usr/bin/chage /usr/bin/chfn /usr/bin/chsh /usr/bin/expiry /usr/bin/gpasswd /usr/bin/mount /usr/bin/newgrp \
/usr/bin/passwd /usr/bin/ssh-agent /usr/bin/su /usr/bin/umount /usr/lib/dbus-1.0/dbus-daemon-launch-helper \
/usr/lib/openssh/ssh-keysign /usr/sbin/unix_chkpwd"
[ -z "$KIMBOX_OPERATOR" ] || SET_UID="$SET_UID /usr/bin/sudo"

# Folders that everybody may write to, if the sticky bit protects the files of others: these, and the scratch space.
PUBLIC="/tmp /var/tmp /run/lock /dev/shm"
if [ -r /run/kimbox/environment ]; then
	while read -r line; do
		case $line in
		TMPDIR=/*) PUBLIC="$PUBLIC ${line#TMPDIR=}" ;;
		esac
	done </run/kimbox/environment
fi

# Folders on which a disk may be mounted; mounts elsewhere must be nosuid and nodev (mount.others).
PLACES="/boot /home /persistent /srv /tmp /usr /var /var/log /var/tmp"

# Time limits for the search of the disks, and for the search for secrets, in seconds.
SEARCH_S=300
SECRETS_S=60

# --- mounts

# Mounts as in proc(5): \040 and the like in names are not decoded.
mounts=''
while read -r _ place type options _; do
	mounts="$mounts$place $type ,$options,
"
done </proc/self/mounts

# options_of PLACE: sets $options, as `,rw,nosuid,`; fails if nothing is mounted. The last mount is the visible one.
options_of() {
	options=''
	while read -r mounted_at _ had; do # not `place`, which callers use
		[ "$mounted_at" != "$1" ] || options=$had
	done <<END
$mounts
END
	[ -n "$options" ]
}

# mounted ID SEVERITY CIS PLACE OPTION...: checks that a mount has these options
mounted() {
	id=$1 severity=$2 cis=$3 place_of=$4
	shift 4
	if ! options_of "$place_of"; then
		row "$id" "$severity" "$cis" "How $place_of is mounted" skip "$*" "it is no mount of its own" ""
		return
	fi
	missing=''
	for option in "$@"; do
		case $options in
		*",$option,"*) ;;
		*) missing="$missing${missing:+ }without $option" ;;
		esac
	done
	none "$id" "$severity" "$cis" "How $place_of is mounted" "$*" "$missing" "mount -o remount,$option $place_of"
}
mounted mount.tmp medium 1.1.2.1.3 /tmp nodev nosuid
mounted mount.tmp_noexec low 1.1.2.1.4 /tmp noexec
mounted mount.shm medium 1.1.2.2.3 /dev/shm nodev nosuid
mounted mount.shm_noexec low 1.1.2.2.4 /dev/shm noexec
mounted mount.home medium 1.1.2.3.3 /home nodev nosuid
mounted mount.var_tmp medium 1.1.2.5.3 /var/tmp nodev nosuid
mounted mount.persistent medium "" /persistent nodev nosuid
mounted mount.boot medium "" /boot nodev nosuid
mounted mount.run medium "" /run nodev nosuid

begin
while read -r place type options; do
	case $place:$type in
	/:* | /dev:* | /dev/shm:* | /tmp:* | /home:* | /var/tmp:* | /persistent:* | /boot:* | /run:* | /usr:* | /var:*) continue ;;
	*:ext[234] | *:xfs | *:btrfs | *:vfat | *:exfat | *:tmpfs | *:fuse* | *:nfs* | *:9p | *:virtiofs | *:iso9660) ;;
	*) continue ;;
	esac
	case $options in
	*,nosuid,*) ;;
	*) item "$place without nosuid" && continue ;;
	esac
	case $options in
	*,nodev,*) ;;
	*) item "$place without nodev" ;;
	esac
done <<END
$mounts
END
ended
none mount.others medium "" "How everything else is mounted" "nodev nosuid" "$found" "mount -o remount,nodev,nosuid FOLDER"

# --- one search of the disks

# owned FILE OPTION: sets $known to find's expression for "the owner is in the file"; -nouser would read the file for each file found
owned() {
	known="$2 0"
	[ -r "$1" ] || return 0
	while IFS=: read -r _ _ number _; do
		case $number in
		'' | *[!0-9]*) ;;
		*) known="$known -o $2 $number" ;;
		esac
	done <"$1"
}
owned /etc/passwd -uid
users=$known
owned /etc/group -gid
groups=$known
set -- /
for place in $PLACES; do
	if options_of "$place"; then set -- "$@" "$place"; fi
done

# One line for each finding: a letter, the mode, and the path, in which a line break is shown as `?`. One pass over the disks; awk
# tells from the mode which files have no owner or are writable by everybody.
# shellcheck disable=SC2086 # words of find
searched=$({
	timeout "$SEARCH_S" find "$@" -xdev ! -type l \( \
		\( -type f -perm /6000 -printf 's %m %p\0' \) , \
		\( -perm -0002 ! -type s \( ! -type d -o -perm -1000 \) -printf 'w %m %y%p\0' \) , \
		\( -perm -0002 -type d ! -perm -1000 -printf 'd %m %p\0' \) , \
		\( ! \( \( $users \) \( $groups \) \) -printf 'u %m %p\0' \) , \
		\( \( -type b -o -type c \) -printf 'n %m %p\0' \) \) 2>/dev/null
	# find reports files that vanished meanwhile, which is harmless; a timeout is not
	[ $? -ne 124 ] || printf 'late\0'
} | tr '\n\0' '?\n' | awk -v allowed=" $SET_UID " -v public="$PUBLIC" "$awk_list"'
	BEGIN { places = split(public, place, " ") }
	function is_public(path, i) {
		for (i = 1; i <= places; i++) if (index(path "/", place[i] "/") == 1) return 1
		return 0
	}
	$1 == "late" { late = 1; next }
	{ kind = $1; path = $0; sub(/^[^ ]* [^ ]* /, "", path) }
	kind == "w" { what = substr(path, 1, 1); path = substr(path, 2) }
	# A mounted file system is also found at its mount point
	seen[kind path]++ { next }
	kind == "s" && !index(allowed, " " path " ") { put("suid", path " (" $2 ")") }
	kind == "w" && !is_public(path) && path !~ /^\/dev\// { put(what == "d" ? "public" : "writable", path) }
	kind == "d" { put("writable", path "/") }
	# The cache of the account that runs steps at the next start; `harden` has removed the account by now
	kind == "u" && path !~ /^\/persistent\/cache\/vagrant(\/|$)/ { put("unowned", path) }
	kind == "n" && path !~ /^\/dev\// { put("device", path) }
	END {
		n = split("suid writable public unowned device", all_kinds, " ")
		for (i = 1; i <= n; i++)
			print all_kinds[i] " " all(all_kinds[i]) (late ? " ... the search took too long and is not whole" : "")
	}')

# seen KIND: sets $found
seen() {
	found="the disks cannot be searched"
	while read -r kind list; do
		[ "$kind" != "$1" ] || found=$list
	done <<END
$searched
END
}
seen suid
none file.set_uid high 7.1.13 "Programs that run with the rights of others" "those of Debian's base" "$found" "chmod a-s FILE"
seen writable
none file.writable medium 7.1.11 "Files and folders that everybody may change" "none" "$found" "chmod o-w FILE"
seen public
none file.public medium "" "Folders into which everybody may put files" "$PUBLIC" "$found" "chmod o-w FOLDER"
seen unowned
none file.unowned medium 7.1.12 "Files that belong to nobody" "none" "$found" "chown root: FILE"
seen device
none file.device high "" "Device nodes outside of /dev" "none" "$found" "rm FILE"

# Programs that get rights of root by a capability of their file, as by a set-uid bit. find(1) has no test for it, and getcap(8) may be
# missing: perl, which is part of every Debian, asks the kernel (lgetxattr of x86_64) without following a link.
CAPABLE="/usr/bin/ping"
LGETXATTR=192
if [ "$(uname -m)" = x86_64 ] && command -v perl >/dev/null; then
	capable=$({
		timeout "$SEARCH_S" find "$@" -xdev -type f -perm /0111 -print0 2>/dev/null
		[ $? -ne 124 ] || printf '... the search took too long and is not whole\0'
	} | perl -0 -n -e 'BEGIN { $call = shift } chomp; $value = "\0" x 64; $name = "security.capability";
		print "$_\0" if /^\.\.\. / || syscall($call, "$_\0", "$name\0", $value, 64) > 0' "$LGETXATTR" |
		tr '\n\0' '?\n' | awk -v kept=" $CAPABLE " "$awk_list"'!seen[$0]++ && !index(kept, " " $0 " ") { put("", $0) } END { print all("") }')
	none file.capabilities high "" "Programs with capabilities" "$CAPABLE" "$capable" "setcap -r FILE"
else
	row file.capabilities high "" "Programs with capabilities" skip "$CAPABLE" "perl is missing, or another processor" ""
fi

# Devices that everybody may write to, and disks that everybody may read. Exceptions are the usual ones, and four that give no access
# without further rights, or do nothing without a module, which a sealed box no longer loads.
devices=$(find /dev -xdev \( \( -type b -o -type c \) -perm -0002 -o -type b -perm -0004 \) -printf '%P\n' 2>/dev/null | awk "$awk_list"'
	!/^(null|zero|full|random|urandom|tty|ptmx|pts\/ptmx|fuse|net\/tun|vfio\/vfio|vsock)$/ { put("", $0) }
	END { print all("") }')
none file.devices medium "" "Devices that everybody may use" \
	"null, zero, full, random, urandom, tty, ptmx, fuse, net/tun, vfio/vfio, vsock" "$devices" \
	"a rule for udev, or chmod o= /dev/NAME"

# --- the files on which all security depends

# modes ID SEVERITY CIS TITLE EXPECTED PATTERN FILE...: checks that mode, owner and group of each file match awk's pattern
modes() {
	id=$1 severity=$2 cis=$3 title=$4 expected=$5 pattern=$6
	shift 6
	for file in "$@"; do
		[ -e "$file" ] && set -- "$@" "$file"
		shift
	done
	if [ $# -eq 0 ]; then
		row "$id" "$severity" "$cis" "$title" skip "$expected" "there is none" ""
		return
	fi
	wrong=$(stat -L -c '%a %U %G %n' "$@" 2>/dev/null | awk -v pattern="^($pattern) " "$awk_list"'
		$0 !~ pattern { name = $0; sub(/^[^ ]* [^ ]* [^ ]* /, "", name); put("", name " is " $1 " " $2 ":" $3) }
		END { print all("") }')
	none "$id" "$severity" "$cis" "$title" "$expected" "$wrong" "chown and chmod it to what is expected"
}
modes file.passwd high 7.1.1 "Permissions of /etc/passwd and group" "0644 root:root or less" '[46][04][04] root root' \
	/etc/passwd /etc/passwd- /etc/group /etc/group-
modes file.shadow high 7.1.5 "Permissions of /etc/shadow and gshadow" "0640 root:shadow or less" \
	'([46][04]0|0) root (root|shadow)' 	/etc/shadow /etc/shadow- /etc/gshadow /etc/gshadow-
modes file.sudoers high "" "Permissions of the rules for sudo" "0440 root:root or less" '([46][04]0|0) root root' \
	/etc/sudoers /etc/sudoers.d/*
modes file.host_keys high 5.1.2 "Permissions of the ssh host keys" "0600 root:root" '[46]00 root root' \
	/persistent/ssh/*_key /etc/ssh/ssh_host_*_key
modes file.sshd_config medium 5.1.1 "Permissions of the configuration of sshd" "0644 root:root or less" \
	'[46][04][04] root root' 	/etc/ssh/sshd_config /etc/ssh/sshd_config.d/*
modes file.grub low 1.4.2 "Permissions of the boot menu" "0600 root:root" '[46]00 root root' /boot/grub/grub.cfg

# --- secrets at rest

# Secrets of `secure` and `seal`. The credentials are encrypted; no other file may contain a secret.
KEPT="answers.env cache.sha256 credentials.enc known_hosts operator_keys outbound policy.env rotated"

if [ -d "$sealed" ]; then
	hidden=$(for folder in "$sealed" /run/kimbox/credentials; do
		[ ! -d "$folder" ] || find "$folder" \( ! -uid 0 -o -perm /0077 \) ! -type l -printf '%p (%m)\0' -o -type l -printf '%p (link)\0'
	done | names)
	none secret.private high "" "Who may read the secrets of the role" "root alone" "$hidden" \
		"chown -R root: $sealed; chmod -R go= $sealed"
	plain=$(find "$sealed" -mindepth 1 -printf '%P\0' | tr '\n\0' '?\n' | awk -v kept=" $KEPT " "$awk_list"'
		!index(kept, " " $0 " ") { put("", $0) }
		END { print all("") }')
	none secret.kept medium "" "What lies beside the locked credentials" "$KEPT" "$plain" "remove it from $sealed"
	plain=$(find "$sealed" -type f ! -name credentials.enc -size -1024 -exec grep -l -a -i -Z -E \
		-e '^[^#]*(passw(or)?d|passphrase|secret|token)[a-z_]*[=:] *.' -e 'PRIVATE KEY-----' {} + 2>/dev/null | names)
	if [ -e "$sealed/credentials.enc" ]; then
		case $(head -c 8 "$sealed/credentials.enc") in
		Salted__) ;; # openssl-enc(1)
		*) plain="$sealed/credentials.enc is not locked${plain:+, }$plain" ;;
		esac
	fi
	none secret.plain high "" "Credentials in the clear" "none: they are in credentials.enc, locked" "$plain" \
		"kimbox secure --rotate: what was in the clear is no secret any more"
else
	row secret.private high "" "Who may read the secrets of the role" skip "root alone" "there are none" ""
	row secret.kept medium "" "What lies beside the locked credentials" skip "$KEPT" "there are none" ""
	row secret.plain high "" "Credentials in the clear" skip "none" "there are none" ""
fi

# Keys in small files that others than the owner may read, on every mounted file system outside of /proc and /sys. A key that its
# group can read is a finding, unless the group is root's or that of an account of the role: such an account distributes keys.
# Everybody has the keys of a package of Debian, and those in the tests of a Python package.
public_to="-perm -0040 ! -gid 0"
while IFS=: read -r name _ number _; do
	if has "$name" "$allowed"; then public_to="$public_to ! -gid $number"; fi
done </etc/group
set -- /
while read -r place _; do
	case $place in
	'' | / | /proc | /proc/* | /sys | /sys/*) continue ;;
	*\\*) place=$(printf '%b' "$(printf '%s' "$place" | sed 's/\\/\\0/g')") ;; # proc(5): \040 is a space
	esac
	set -- "$@" "$place"
done <<END
$mounts
END

# in_time COMMAND...: prints the names that it finds, and one more if the time limit stopped it
in_time() {
	timeout "$SECRETS_S" "$@" 2>/dev/null
	[ $? -ne 124 ] || printf 'not all: the search was ended after %s s\0' "$SECRETS_S"
}

# Reads names, prints those that no package of Debian has below /usr. /bin, /sbin and /lib are links to folders of /usr.
UNPACKAGED='BEGIN {
	$/ = "\n";
	for my $list (glob "/var/lib/dpkg/info/*.list") {
		open my $file, "<", $list or next;
		while (<$file>) { chomp; s,^/(bin|sbin|lib[0-9a-z]*)/,/usr/$1/,; $packaged{$_} = 1 if m,^/usr/, }
	}
	$/ = "\0";
}
chomp; print "$_\0" unless $packaged{$_}'
command -v perl >/dev/null || UNPACKAGED=''

# shellcheck disable=SC2086 # words of find
keys=$(in_time sh -c '
	program=$1
	shift
	find "$@" -print0 | if [ -n "$program" ]; then perl -n -e "$program"; else cat; fi |
		xargs -0 -r grep -l -I -Z -E -e "^-----BEGIN [A-Z ]*PRIVATE KEY-----"' sh "$UNPACKAGED" \
	"$@" -xdev -type f \( -perm -0004 -o $public_to \) -size -64 -size +0 ! -path '*/lib/python3*/*test*/*' | names)
none secret.keys high 7.2.10 "Private keys that others may read" "none" "$keys" "chmod 0600 FILE, and make a new key"

logs=$(in_time find /persistent/log /var/log -xdev -type f -size -131072 \
	-exec grep -l -a -Z -e '-----BEGIN [A-Z ]*PRIVATE KEY-----' {} + | names)
none secret.logs high "" "Private keys in logs" "none" "$logs" "remove the log, and make a new key"
