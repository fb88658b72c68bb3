# shellcheck shell=sh
# shellcheck disable=SC2154,SC2016 # some of it comes from `audit`, which sources this; awk has variables of its own
# Who can log in or get more rights: accounts, keys, sudo, consoles.

# --- accounts

# Groups whose members can reach devices, logs or other accounts without any other check.
GROUPS_OF_POWER="root adm disk docker incus kmem kvm lxd shadow staff sudo tty"

# keys_of NAME HOME: succeeds if sshd would find a key of the account
keys_of() {
	for file in "/run/kimbox/authorized_keys/$1" "$2/.ssh/authorized_keys" "$2/.ssh/authorized_keys2"; do # or: ssh.authorizedkeysfile
		[ ! -s "$file" ] || return 0
	done
	return 1
}

# Names of accounts with keys, whatever their shell: an account without a shell can still forward ports.
keyed=''
begin
if [ -r /etc/passwd ]; then
	while IFS=: read -r name _ _ _ _ home _; do
		if [ -n "$name" ] && keys_of "$name" "$home"; then keyed="$keyed $name"; fi
	done </etc/passwd
fi

# One pass over passwd, shadow and group; prints one line for each kind of finding.
accounts=$(awk -F: -v allowed=" $allowed " -v keyed="$keyed " -v power=" $GROUPS_OF_POWER " "$awk_list"'
	function usable(hash) { return hash == "" || hash !~ /^[!*]/ }
	function shell(path) { return path !~ /\/(nologin|false|sync|halt|shutdown)$/ }
	FILENAME ~ /shadow$/ { hash[$1] = $2; shadowed[$1] = 1; next }
	FILENAME ~ /group$/ {
		group[$3] = $1
		if (gids[$3]++) put("twice", "group " $3)
		if (groups[$1]++) put("twice", "group " $1)
		if ($3 == 0 && $1 != "root") put("zero", "group " $1)
		if (!index(power, " " $1 " ")) next
		n = split($4, member, ",")
		for (i = 1; i <= n; i++)
			if (member[i] != "" && !($1 == "sudo" && member[i] == "operator" && index(allowed, " operator ")))
				put("power", member[i] " in " $1)
		next
	}
	{
		had = $2 == "x" ? (($1 in shadowed) ? hash[$1] : "*") : $2
		if ($2 != "x" && $2 != "*" && $2 != "!") put("plain", $1)
		if (names[$1]++) put("twice", "account " $1)
		if (uids[$3]++) put("twice", "uid " $3)
		if ($3 + 0 == 0 && $1 != "root") put("zero", $1)
		if ($1 == "vagrant") put("vagrant", "it is there")
		if (had == "") put("empty", $1)
		else if (usable(had) && !index(allowed, " " $1 " ")) put("password", $1)
		if ($1 == "root" && usable(had)) put("root", "it has a password")
		enters = index(keyed, " " $1 " ") || (shell($7) && usable(had))
		if (enters && !index(allowed, " " $1 " "))
			put("login", $1 (index(keyed, " " $1 " ") ? " (key)" : " (password)"))
		if ($3 + 0 > 0 && $3 < 1000 && shell($7)) put("shell", $1 " " $7)
		if ($4 == 0 && $3 + 0 != 0) put("zero", $1 " in group root")
		if (!($4 in group)) put("nogroup", $1) # before group[$4] is used, which makes an entry
		else if ($4 != 0 && index(power, " " group[$4] " ")) put("power", $1 " in " group[$4])
	}
	END {
		n = split("login password empty plain zero root vagrant power shell twice nogroup", kind, " ")
		for (i = 1; i <= n; i++) print kind[i] " " all(kind[i])
	}' /etc/shadow /etc/group /etc/passwd 2>/dev/null)

# of KIND: sets $found
of() {
	found="unreadable: /etc/passwd, group or shadow"
	while read -r kind list; do
		[ "$kind" != "$1" ] || found=$list
	done <<END
$accounts
END
}

of login
none account.login high "" "Accounts that can log in" "${allowed:-none}" "$found" "remove the account, or its key and password"
of password
none account.password high "" "Accounts with a password" "${allowed:-none}" "$found" "usermod --lock NAME"
of empty
none account.empty high 7.2.2 "Accounts that need no password" "none" "$found" "usermod --lock NAME"
of plain
none account.shadowed high 7.2.1 "Passwords outside of /etc/shadow" "none" "$found" "pwconv"
of zero
none account.root_alike high 5.4.2.1 "Accounts and groups with the numbers of root" "root alone" "$found" "userdel NAME, or another number"
of root
none account.root high 5.4.2.4 "The password of root is locked" "locked" "$found" "passwd --lock root"
of vagrant
none account.vagrant high "" "There is no account vagrant" "none" "$found" "kimbox secure removes it"
of power
none account.groups high 7.2.4 "Members of groups that reach devices or other accounts" "none" "$found" "gpasswd --delete NAME GROUP"
of shell
none account.system_shell medium 5.4.2.7 "System accounts with a login shell" "none" "$found" "usermod --shell /usr/sbin/nologin NAME"
of twice
none account.twice medium 7.2.5 "Names and numbers of accounts that are there twice" "none" "$found" "remove one of them"
of nogroup
none account.no_group low 7.2.3 "Accounts whose group does not exist" "none" "$found" "make the group, or choose another"

# Home folders: other accounts must neither read nor write them.
begin
while IFS=: read -r name _ uid _ _ home _; do
	case $uid in
	'' | *[!0-9]* | ????????*) continue ;;
	esac
	if [ "$uid" -ge 1000 ] && [ "$uid" -lt 60000 ] && [ -d "$home" ] && [ ! -L "$home" ] && [ "$home" != / ]; then
		homes=$(stat -c '%a %U' "$home") || continue
		case $homes in
		*[0-7][0145]0" $name" | *[0-7][0145][0145]" root") ;; # owned by root: the account cannot write, which sshd requires for a chroot
		*) item "$home is $homes" ;;
		esac
	fi
done </etc/passwd
ended
none account.homes medium 7.2.9 "Home folders" "their owner's alone: 0750 or less" "$found" "chmod 0750 FOLDER"

# --- sudo

# Who may become another user with sudo. Aliases, and includes other than the usual folder, are not followed but reported.
if [ -e /etc/sudoers ]; then
	set -- /etc/sudoers
	for file in /etc/sudoers.d/*; do
		[ ! -f "$file" ] || set -- "$@" "$file"
	done
	sudoers=$(awk -v operator="$KIMBOX_OPERATOR" "$awk_list"'
		function add(group, name) { members[group] = members[group] (members[group] == "" ? "" : ",") name }
		FILENAME == "/etc/group" {
			split($0, f, ":"); group[f[3]] = f[1]
			if (f[4] != "") { add(f[1], f[4]); add("#" f[3], f[4]) }
			next
		}
		FILENAME == "/etc/passwd" { # the primary group
			split($0, f, ":")
			if (f[1] != "root") { add("#" f[4], f[1]); if (f[4] in group) add(group[f[4]], f[1]) }
			next
		}
		{
			line = kept $0; kept = ""
			if (line ~ /\\$/) { kept = substr(line, 1, length(line) - 1); next }
			gsub(/^[ \t]+/, "", line)
			if (line == "" || (line ~ /^#/ && line !~ /^#(include|[0-9])/) || line ~ /^Defaults/) next
			if (line ~ /^[@#]includedir \/etc\/sudoers\.d$/ || line ~ /^root[ \t]/) next
			if (operator != "" && line ~ /^operator[ \t]/) next
			name = line; sub(/[ \t].*/, "", name)
			if (name ~ /^%/) {
				held = members[substr(name, 2)]
				if (name !~ /^%:/ && held == "" || (operator != "" && held == "operator")) next
				line = line " [" held "]"
			}
			put("", line)
		}
		END { print all("") }' /etc/group /etc/passwd "$@" 2>/dev/null)
	none sudo.rules high "" "Who may use sudo" "nobody${KIMBOX_OPERATOR:+ but operator}" "$sudoers" "remove the rule from /etc/sudoers.d"
else
	row sudo.rules high "" "Who may use sudo" pass "nobody${KIMBOX_OPERATOR:+ but operator}" "there is no sudo" ""
fi

# --- consoles

# If one of these units starts, it offers a login or a shell on a console. In a sealed box a condition prevents each of them.
begin
while read -r unit _ state _; do
	case $unit in
	getty@*.service | serial-getty@*.service | console-getty.service | container-getty@*.service | autovt@*.service) ;;
	debug-shell.service | rescue.service | emergency.service) ;;
	*) continue ;;
	esac
	[ "$state" != active ] || item "$unit is active"
done <<END
$(systemctl list-units --all --plain --no-legend --no-pager --full 'getty@*' '*-getty*' 'autovt@*' debug-shell.service \
	rescue.service emergency.service 2>/dev/null)
END
if [ ! -e /run/kimbox/closed ]; then
	while read -r unit state _; do
		case $state in
		enabled* | linked*) item "$unit is $state" ;;
		esac
	done <<END
$(systemctl list-unit-files --no-legend --no-pager --full 'getty@*' '*-getty*' debug-shell.service 2>/dev/null)
END
fi
ended
none console.login medium "" "Logins at a console" "none" "$found" "kimbox secure closes them"
