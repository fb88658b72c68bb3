# shellcheck shell=sh
# shellcheck disable=SC2154,SC2016 # some of it comes from `audit`, which sources this; awk has variables of its own
# What can be reached from outside: sockets, the firewall, sshd.

# --- sockets

# Both address families, as in proc(5): address and port in hexadecimal, the address in words of the processor's byte order.
# A listening TCP socket has state 0A; a UDP socket that receives from everybody has 07. Exceptions: the port of the DHCP client, and
# the ports of timesyncd: the kernel chooses them, and each socket sends one request.
client=''
if [ -r /etc/passwd ]; then
	while IFS=: read -r name _ uid _; do
		[ "$name" != systemd-timesync ] || client=$uid
	done </etc/passwd
fi
sockets() { # sockets STATE FILE...: sockets that listen on more than loopback and are no exception, as PORT (FILE)
	want=$1
	shift
	for file in "$@"; do
		[ -r "$file" ] && set -- "$@" "$file"
		shift
	done
	[ $# -gt 0 ] || return 0
	awk -v want="$want" -v inbound=" $KIMBOX_INBOUND${KIMBOX_OPERATOR:+ 22} " -v client="$client" "$awk_list"'
	function number(hex, i, n) {
		for (i = 1; i <= length(hex); i++) n = n * 16 + index("0123456789ABCDEF", substr(hex, i, 1)) - 1
		return n
	}
	FNR == 1 || $4 != want { next }
	{
		split($2, local, ":"); port = number(local[2]); name = FILENAME; sub(".*/", "", name)
		if (local[1] ~ /^[0-9A-F]*7F$/ && (length(local[1]) == 8 || local[1] ~ /^0000000000000000FFFF0000/)) next
		if (local[1] == "00000000000000000000000001000000") next
		if (want == "0A" && index(inbound, " " port " ")) next
		if (want == "07" && (port == 68 || (client != "" && $8 == client && port >= 32768))) next
		if (!seen[name " " port]++) put("", port " (" name ")")
	}
	END { print all("") }' "$@"
}
expected="loopback alone${KIMBOX_INBOUND:+, and $KIMBOX_INBOUND}"
[ -z "$KIMBOX_OPERATOR" ] || has 22 "$KIMBOX_INBOUND" || expected="$expected, and 22 for the operator"
none net.tcp high 2.1.22 "TCP ports that listen" "$expected" "$(sockets 0A /proc/net/tcp /proc/net/tcp6)" \
	"stop what listens, bind it to 127.0.0.1, or name the port in the role's inbound"
none net.udp high 2.1.22 "UDP ports that listen" "loopback alone, and the DHCP client" \
	"$(sockets 07 /proc/net/udp /proc/net/udp6)" "stop what listens, or bind it to 127.0.0.1"

# Without a limit on the host, the user network of QEMU gives root of this box every TCP service on 127.0.0.1 of the host.
connects_to=''
{ read -r connects_to </run/credentials/@system/kimbox.connects_to; } 2>/dev/null
none net.host low "" "Services of the host that root of this box reaches" "those on ports of the spec" \
	"$([ -n "$connects_to" ] || echo "every TCP port of 127.0.0.1, unless the firewall rejects it")" \
	"a host with Linux 6.7 or newer: kimbox doctor"

# --- firewall

# Only rules of a known form are trusted: every other rule that accepts is reported. A packet that one chain drops cannot be accepted
# by another, so rules of other tables open nothing as long as the policies here are drop.
rules=$(nft list ruleset 2>/dev/null) || rules=''
# The accounts that `seal` lets use the name server, by number and, as nft may print them, by name.
resolving=' root '
if [ -r /etc/passwd ]; then
	while IFS=: read -r name _ uid _; do
		case $name in
		root | _apt) resolving="$resolving$uid $name " ;;
		esac
	done </etc/passwd
fi
fw=$(printf '%s\n' "$rules" | awk -v inbound=" $KIMBOX_INBOUND " -v operator="$KIMBOX_OPERATOR" -v outbound="$outbound" \
	-v names="$outbound_names" -v dns="$KIMBOX_DNS" -v resolving="$resolving" "$awk_list"'
	function bare(rule) { # without counters and comments
		gsub(/counter( packets [0-9]+ bytes [0-9]+)?/, "", rule); gsub(/comment "[^"]*"/, "", rule)
		gsub(/log( prefix "[^"]*")?/, "", rule); gsub(/[ \t]+/, " ", rule); sub(/^ /, "", rule); sub(/ $/, "", rule)
		return rule
	}
	function listed(text, i, n, port) { # succeeds if all ports in { 22, 80 } are allowed
		gsub(/[{},]/, " ", text); n = split(text, port, " ")
		for (i = 1; i <= n; i++) if (port[i] !~ /^[0-9]+$/ || !index(inbound, " " port[i] " ")) return 0
		return n > 0
	}
	function reached(text, i, n, element, to) { # hosts of a set that are not in the spec; entries with a timeout come from names
		gsub(/[{}]/, " ", text); n = split(text, element, ",")
		for (i = 1; i <= n; i++) {
			to = element[i]; sub(/ (timeout|expires) .*/, "", to); gsub(/ \. /, " ", to); gsub(/^[ \t]+|[ \t]+$/, "", to)
			if (to == "" || (element[i] ~ / (timeout|expires) / && names != "")) continue
			if (!index(outbound, "|" to "|")) put("out", "set " set " has " to)
		}
	}
	function resolves(text, i, n, uid) { # accounts that may use a name server, and are neither root nor apt
		gsub(/[{},]/, " ", text); n = split(text, uid, " ")
		for (i = 1; i <= n; i++) if (!index(resolving, " " uid[i] " ")) put("out", "set resolving has " uid[i])
	}
	function general(rule) {
		return rule ~ /^(iif|iifname|oif|oifname) "?lo"? accept$/ ||
			rule ~ /^ct state [{ ]*(established|related|,| )+[} ]*accept$/ ||
			rule ~ /^(meta l4proto )?(icmp|icmpv6|ipv6-icmp)[^"]* accept$/ || rule ~ /^ip6 nexthdr (icmpv6|ipv6-icmp) .*accept$/
	}
	function harmless_in(rule, ports) {
		if (general(rule) || rule ~ /^(udp sport 67 )?udp dport 68 accept$/) return 1
		if (rule ~ /^ip saddr @hypervisor4 tcp dport 22( ct state new)? accept$/) return 1
		if (rule ~ /^tcp dport @inbound( ct state new)? accept$/) return 1
		if (rule !~ /^(ip6? saddr [^ ]+ )?tcp dport ([0-9]+|\{[^}]*\})( ct state new)? accept$/) return 0
		ports = rule; sub(/.*tcp dport /, "", ports); sub(/( ct state new)? accept$/, "", ports)
		return listed(ports)
	}
	function harmless_out(rule) { # a host or a port is named
		return general(rule) || rule ~ /daddr/ || rule ~ /dport/
	}
	$1 == "table" { family = $2; table = $3; set = chain = hook = ""; next }
	$1 == "set" || $1 == "map" { set = $2; hook = ""; next }
	$1 == "chain" { chain = $2; set = hook = ""; next }
	$1 == "}" { set = hook = ""; next }
	set != "" && /elements = / { open = 1 }
	set != "" && open {
		text = $0; sub(/.*elements = /, "", text); open = text !~ /}/
		if (set == "inbound" && !listed(text)) put("in", "set inbound has " bare(text))
		if (set == "hypervisor4" && operator == "") put("in", "set hypervisor4 has " bare(text))
		if (set == "resolvers4" && dns == "") put("out", "set resolvers4 has " bare(text))
		if (set == "resolving") resolves(text)
		if (set ~ /^outbound[46]$/) reached(text)
		next
	}
	set != "" { next }
	$1 == "type" {
		hook = $4
		if (family == "inet" && $2 == "filter" && /policy drop/) drops[hook] = 1
		inet = family == "inet"; next
	}
	!inet || hook == "" { next }
	{ rule = bare($0) }
	hook == "input" && (rule ~ /accept/ || rule ~ /(jump|goto|queue|vmap)/) && !harmless_in(rule) { put("in", rule) }
	hook == "forward" && rule ~ /(accept|jump|goto|queue|vmap)/ { put("forward", rule) }
	hook == "output" && rule ~ /(accept|jump|goto|queue|vmap)/ && !harmless_out(rule) { put("out", rule) }
	END {
		for (name in drops) dropped = dropped " " name
		print "drops" dropped; print "in " all("in"); print "forward " all("forward"); print "out " all("out")
	}')
drops='' accepts_in='' accepts_forward='' accepts_out=''
while IFS= read -r line; do
	case $line in
	drops*) drops=${line#drops} ;;
	in\ *) accepts_in=${line#in } ;;
	forward\ *) accepts_forward=${line#forward } ;;
	out\ *) accepts_out=${line#out } ;;
	esac
done <<END
$fw
END

for hook in input forward output; do
	if has "$hook" "$drops"; then policy="policy drop"; else policy="no chain of family inet with policy drop"; fi
	same "fw.$hook" high 4.2.8 "The firewall drops by default: $hook" "policy drop" "$policy" "start the box again: seal loads the rules"
done
none fw.accepts high 4.2.7 "What the firewall lets in" \
	"answers, ICMP, ${KIMBOX_INBOUND:-no} TCP port${KIMBOX_OPERATOR:+, and ssh of the host}" "$accepts_in" "remove the rule"
none fw.forwards high 4.2.7 "What the firewall lets through" "nothing" "$accepts_forward" "remove the rule"
none fw.sends medium 4.2.7 "What the firewall lets out" "hosts of the spec, and no rule that names neither a host nor a port" \
	"$accepts_out" "remove the rule, or the element"

# `seal` records the rules it has loaded, without the elements of sets (-t), which change as names are resolved.
recorded=''
{ read -r recorded _ </run/kimbox/seal.nft.sha256; } 2>/dev/null
if [ -n "$recorded" ]; then
	now=$(nft -s -t list table inet kimbox 2>/dev/null | sha256sum)
	same fw.changed high 4.2.10 "The firewall is as it was when the box was closed" "$recorded" "${now%% *}" \
		"start the box again: seal loads the rules"
elif [ -r "$sealed/policy.env" ]; then
	row fw.changed high 4.2.10 "The firewall is as it was when the box was closed" fail "a digest of the rules" "no digest" \
		"start the box again: seal loads the rules"
else
	row fw.changed high 4.2.10 "The firewall is as it was when the box was closed" skip "a digest of the rules" "not sealed" ""
fi

# --- sshd

# has_process NAME: succeeds if one runs; starts no program for each process
has_process() {
	for file in /proc/[0-9]*/comm; do
		had=''
		{ read -r had <"$file"; } 2>/dev/null
		[ "$had" != "$1" ] || return 0
	done
	return 1
}

# Important options of sshd: severity, number, and the accepted values, separated by `,`.
OPTIONS="passwordauthentication high none no
kbdinteractiveauthentication high none no
permitemptypasswords high 5.1.19 no
permitrootlogin high 5.1.20 no
hostbasedauthentication high 5.1.10 no
ignorerhosts medium 5.1.11 yes
permituserenvironment medium 5.1.21 no
x11forwarding medium none no
gssapiauthentication medium 5.1.9 no
permittunnel medium none no
authorizedkeysfile high none /run/kimbox/authorized_keys/%u
authorizedkeyscommand high none none
trustedusercakeys high none none
usepam low 5.1.22 yes
loglevel low 5.1.14 INFO,VERBOSE"

# The options for an unknown user, and for each account that a Match block may name: for one of the role on the box itself, and for
# the others from the host. The role decides where the keys of its accounts are, and whether they log in by password, which the
# report says. The operator logs in by key only.
role_accounts=''
for name in $allowed; do
	[ "$name" = operator ] || role_accounts="$role_accounts${role_accounts:+ }$name"
done
hypervisor=''
{ read -r _ hypervisor _ </run/credentials/@system/kimbox.network; } 2>/dev/null

# may_name_any: succeeds unless each Match line of sshd names accounts in the plain form, `Match User NAME,...`. Sets $named to them. For
# other accounts sshd then has the options for an unknown user, and it takes a fifth of a second under emulation to print those of one.
may_name_any() {
	named=''
	while IFS= read -r line; do
		case $line in
		'' | 'Match all') ;;
		'Match User '*[!A-Za-z0-9_,.-]* | 'Match User ') return 0 ;;
		'Match User '*) named="$named $(echo "${line#Match User }" | tr , ' ')" ;;
		'Include /etc/ssh/sshd_config.d/*.conf') ;;
		*) return 0 ;;
		esac
	done <<-END
		$(sed -n -e 's/^[[:space:]"]*//' -e 's/[[:space:]]*$//' -e '/^[Mm][Aa][Tt]/p' -e '/^[Ii][Nn][Cc]/p' /etc/ssh/sshd_config /etc/ssh/sshd_config.d/*.conf 2>/dev/null)
	END
	return 1
}

sshd_runs=no options=''
if has_process sshd; then
	sshd_runs=yes any=yes
	may_name_any || any=no
	if options=$(sshd -T 2>&1); then
		options=$({
			printf '%s\n' "$options"
			for name in $role_accounts; do
				for address in 127.0.0.1 $hypervisor; do
					sshd -T -C "user=$name,host=localhost,addr=$address" 2>/dev/null
				done | awk -v name="$name" '
					$1 == "passwordauthentication" { if ($2 != "no" && !said++) print "password_of " name; next }
					$1 != "authorizedkeysfile"'
			done
			while IFS=: read -r name _; do
				if [ -z "$name" ] || has "$name" "$role_accounts"; then continue; fi
				[ "$any" = yes ] || has "$name" "$named" || continue
				sshd -T -C "user=$name,host=localhost,addr=${hypervisor:-127.0.0.1}" 2>/dev/null
			done </etc/passwd
		} | awk -v table="$OPTIONS" "$awk_list"'
			BEGIN {
				rows = split(table, row, "\n")
				for (i = 1; i <= rows; i++) { split(row[i], word, " "); well[word[1]] = "," word[4] "," }
			}
			{ value = substr($0, length($1) + 2) }
			$1 == "password_of" { put("of", value) }
			$1 in well && !index(well[$1], "," value ",") && !seen[$1 " " value]++ { put($1, value) }
			END { for (name in well) print name " " all(name); print "password_of " all("of") }')
	else
		sshd_runs=unknown
	fi
fi
while read -r option severity cis well; do
	[ "$cis" != none ] || cis=''
	status=pass found="as expected" remedy='' expected=$well
	if [ "$option:${role_accounts:+some}" = passwordauthentication:some ]; then
		expected="no, and for $role_accounts as the role decides"
	fi
	if [ "$sshd_runs" = no ]; then
		status=skip found="sshd does not run"
	elif [ "$sshd_runs" = unknown ]; then
		status=fail found=$options remedy="repair the configuration of sshd"
	else
		while read -r name bad; do
			[ -n "$bad" ] || continue
			if [ "$name:$option:$status" = password_of:passwordauthentication:pass ]; then found="no, and yes for $bad"; fi
			if [ "$name" = "$option" ]; then
				status=fail found=$bad remedy="$option ${well%%,*} in /etc/ssh/sshd_config.d"
			fi
		done <<END
$options
END
	fi
	row "ssh.$option" "$severity" "$cis" "sshd: $option" "$status" "$expected" "$found" "$remedy"
done <<END
$OPTIONS
END
