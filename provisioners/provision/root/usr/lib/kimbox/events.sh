# shellcheck shell=sh
# Events for the host: one JSON line each, to the virtio-serial port, or, if there is none, to /persistent/log/events.jsonl.
# Sourced; defines the function `event`. Usually it starts no program: each takes 5 ms under emulation.

ev_port=/dev/virtio-ports/org.kimbox.0
ev_run=/run/kimbox

# Limit on the values of one event, in bytes. The escaped line stays below 32 KiB, which the port accepts in one write.
EV_BUDGET=4096

# ev_escape VALUE: sets $ev_json to the value as a JSON string without quotes; invalid UTF-8 becomes U+FFFD.
ev_escape() {
	ev_json=$1
	if [ ${#ev_json} -gt "$ev_left" ]; then
		ev_json=$(printf "%.${ev_left}sx" "$ev_json")
		ev_json=${ev_json%x}
	fi
	ev_left=$((ev_left - ${#ev_json}))
	case $ev_json in
	*[!A-Za-z0-9\ ._:/=+@,\;\(\)-]*) ;;
	*) return ;;
	esac
	ev_json=$(LC_ALL=C EV_VALUE=$ev_json awk 'BEGIN {
		for (i = 1; i < 256; i++) ord[sprintf("%c", i)] = i
		s = ENVIRON["EV_VALUE"]; n = length(s); i = 1
		while (i <= n) {
			ch = substr(s, i, 1); c = ord[ch]
			if (c < 128) {
				if (c == 34 || c == 92) out = out "\\" ch
				else if (c < 32 || c == 127) out = out sprintf("\\u%04x", c)
				else out = out ch
				i++
				continue
			}
			need = 0; low = 128; high = 191
			if (c >= 194 && c <= 223) need = 1
			else if (c >= 224 && c <= 239) { need = 2; if (c == 224) low = 160; if (c == 237) high = 159 }
			else if (c >= 240 && c <= 244) { need = 3; if (c == 240) low = 144; if (c == 244) high = 143 }
			for (k = 1; k <= need; k++) {
				d = (i + k <= n) ? ord[substr(s, i + k, 1)] : 0
				if (d < low || d > high) break
				low = 128; high = 191
			}
			if (need && k > need) out = out substr(s, i, need + 1)
			else out = out "\\ufffd"
			i += k
		}
		printf "%s", out
	}' 2>/dev/null) || ev_json='?'
}

# event NAME [key=value]...: never fails. `n`, `of`, `exit` and `percent` are numbers, all other values are text.
event() {
	case $1 in
	'' | *[!a-z_]*) return 0 ;;
	esac
	ev_name=$1 ev_left=$EV_BUDGET ev_boot='' ev_up=0
	shift
	read -r ev_boot </proc/sys/kernel/random/boot_id 2>/dev/null
	read -r ev_up ev_json </proc/uptime 2>/dev/null
	ev_line="{\"event\":\"$ev_name\",\"boot\":\"$ev_boot\",\"uptime_s\":${ev_up:-0}"
	for ev_pair in "$@"; do
		ev_key=${ev_pair%%=*}
		case $ev_key in
		'' | *[!a-z_]* | event | boot | uptime_s) continue ;;
		esac
		case $ev_key:${ev_pair#*=} in
		*:*[!0-9]* | *: | *:0?* | *:????????????????*) ;;
		n:* | of:* | exit:* | percent:*)
			ev_line="$ev_line,\"$ev_key\":${ev_pair#*=}"
			continue
			;;
		esac
		ev_escape "${ev_pair#*=}"
		ev_line="$ev_line,\"$ev_key\":\"$ev_json\""
	done
	ev_line="$ev_line}"
	ev_send
	case $ev_name in
	booting | waiting | provisioning | ready | sealed | failed) ev_status ;;
	esac
	[ ! -e "$ev_run/closed" ] || ev_keep
	return 0
}

# A sealed box repeats its description from time to time (`resend`), because it may run for months and report its work all the time.
# Of the progress only the last event is kept: an earlier one, repeated, would look like the present state.
ev_keep() {
	case $ev_name in
	provisioning | ready | sealed | failed) ev_name=stage ;;
	box | fallback | follow | snapshot) ;;
	*) return 0 ;;
	esac
	{ printf '%s\n' "$ev_line" >"$ev_run/reported.$ev_name"; } 2>/dev/null
}

# resend: sends the last event of each descriptive kind again. Not while provisiond works, as it may send newer ones meanwhile.
resend() {
	for ev_file in "$ev_run"/reported.*; do
		[ -r "$ev_file" ] && read -r ev_line <"$ev_file" && ev_send
	done
}

# Only one process at a time can open the port: another event may be in progress.
ev_send() {
	if [ -e "$ev_port" ]; then
		ev_try=0
		until { printf '%s\n' "$ev_line" >>"$ev_port"; } 2>/dev/null; do
			ev_try=$((ev_try + 1))
			[ "$ev_try" -lt 40 ] || return 0
			sleep 0.05
		done
	elif [ -d /persistent/log ]; then
		{ printf '%s\n' "$ev_line" >>/persistent/log/events.jsonl; } 2>/dev/null
	fi
}

# Keeps the last state for later readers, by an atomic rename. `set -C`: never through a link that root in a sealed box has left.
ev_status() {
	[ -d /persistent ] || return 0
	set -C
	{ printf '%s\n' "$ev_line" >"/persistent/.status.json.$$" &&
		mv -f "/persistent/.status.json.$$" /persistent/status.json; } 2>/dev/null ||
		rm -f "/persistent/.status.json.$$" 2>/dev/null
	set +C
}
