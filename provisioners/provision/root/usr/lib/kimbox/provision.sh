# shellcheck shell=sh
# shellcheck disable=SC2034 # some of it is used by those who source it
# Functions of runsetup and runsecure: counting and reporting steps, time limits, the account of a step, checkouts.
# Sourced, after events.sh.

# shellcheck source=marks.sh
. /usr/lib/kimbox/marks.sh
# shellcheck source=pins.sh
. /usr/lib/kimbox/pins.sh
# shellcheck source=environment.sh
. /usr/lib/kimbox/environment.sh

# In a sealed box `mirrors` are on the root, and `verified` puts commits there: root in the box could write to those on /persistent.
delivered=/persistent/git mirrors=/persistent/git
[ ! -e /run/kimbox/closed ] || mirrors=/var/lib/kimbox/git
tab=$(printf '\t')
# A history of everything that ran on any root, for people. One line each, with tabs between time (Unix), boot, boot mode, kind, name,
# digest of the input, exit status and seconds.
history=/persistent/log/history
n=0 of=0 kind='' name=''

# The current manifest: provisiond passes it; a run by hand uses the one that the host has sent.
at_work=${KIMBOX_MANIFEST_FOLDER:-$state/current}

mode=keep
if [ -r /run/kimbox/mode ]; then read -r mode </run/kimbox/mode; fi

# Boot time by the hardware clock: reading it starts no program. Without that clock `date` is used.
now_at() {
	now
	if [ -r /sys/class/rtc/rtc0/since_epoch ]; then
		read -r epoch </sys/class/rtc/rtc0/since_epoch
	else
		epoch=$(date +%s)
	fi
	boot_time=$((epoch - now))
}

# begin KIND NAME [DIGEST]: starts the next step, with its number and name, and the digest of its input
begin() {
	kind=$1 name=$2 input=${3:--} n=$((n + 1))
	[ -n "${boot_time:-}" ] || now_at
	now
	begun=$now
	echo "== step $n of $of: $kind $name"
	event step n="$n" of="$of" kind="$kind" name="$name" status=running
}

# finished: the current step has succeeded
finished() {
	note 0
	event step n="$n" of="$of" kind="$kind" name="$name" status=done
}

# note EXIT: writes the current step to the history; without space the line is lost
note() {
	now
	{ printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$((boot_time + begun))" "${ev_boot:-}" "$mode" "$kind" "$name" "$input" "$1" \
		"$((now - begun))" >>"$history"; } 2>/dev/null
}

# skip KIND NAME: counts a step that was done before
skip() {
	kind=$1 name=$2 n=$((n + 1))
	event step n="$n" of="$of" kind="$kind" name="$name" status=skipped
}

# fail EXIT REASON: ends the run. provisiond reports it after the log has reached the host; a run by hand reports it here.
fail() {
	echo "== step $n of $of: $kind $name: $2"
	[ -z "${begun:-}" ] || note "$1"
	event step n="$n" of="$of" kind="$kind" name="$name" status=failed exit="$1"
	if [ -n "${KIMBOX_PROVISIOND:-}" ]; then
		printf '%s\n%s\n%s\n%s\n' "$kind" "$1" "$name" "$2" >/run/kimbox/failed
	else
		event failed manifest="${KIMBOX_MANIFEST:-}" kind="$kind" name="$name" exit="$1" reason="$2"
	fi
	exit 1
}

# is_done FILE DIGEST: succeeds if that record has this digest
is_done() {
	[ -r "$1" ] && read -r had <"$1" && [ "$had" = "$2" ]
}

# mark_done FILE DIGEST [PINS]: writes the record, with the lines of PINS (pins.sh). When it returns, the effects and the record are on
# the disk. The record is never on the disk without the effects: after a power failure there are both, or no record.
mark_done() {
	done_folder=${1%/*} done_text=$2
	[ -z "${3:-}" ] || done_text=$2${3}end
	[ -d "$done_folder" ] || mkdir -p "$done_folder"
	if ! { printf '%s\n' "$done_text" >"$done_folder/.new" && sync && mv -f "$done_folder/.new" "$1" && sync_record "$1"; }; then
		fail 1 "cannot write $1: is the root file system full?"
	fi
}

# sync_record FILE: writes the present record to the disk; a record for one boot lies in memory
sync_record() {
	case $1 in
	/run/*) ;;
	*) sync -f "${1%/*}" ;;
	esac
}

# not_done FILE: invalidates the record before its work is done again, also for the case of a failure or a power failure. The record
# that the whole manifest is done becomes invalid, too.
not_done() {
	[ -s "$1" ] || return 0
	[ "$1" = "$record/manifest" ] || not_done "$record/manifest"
	{ : >"$1" && sync_record "$1"; } || fail 1 "cannot write $1"
}

# complete_records: adds the present commits of the repositories of $pins, from their own records, to records of an older kimbox. Call
# it before another commit is checked out: after that nothing on the root has the old commit.
complete_records() {
	for done_file in "$record"/setup-setup "$record"/provision-*; do
		{ read_record "$done_file" && [ -z "$record_end" ]; } || continue
		done_digest=$record_digest done_pins=$pin_line
		for done_of in "$record"/repository-*; do
			done_name=${done_of##*/repository-}
			case $pins in *"$pin_line$done_name$pin_tab"*) ;; *) continue ;; esac
			[ -s "$done_of" ] || continue
			read -r done_commit done_path <"$done_of"
			case $done_path in *" with submodules") done_commit="$done_commit with submodules" ;; esac
			done_pins="$done_pins$done_name$pin_tab$done_commit$pin_line"
		done
		mark_done "$done_file" "$done_digest" "$done_pins"
	done
}

# now: sets $now to the seconds since the boot, as an integer
now() {
	read -r now _ </proc/uptime
	now=${now%.*}
}

# clean system|user [VARIABLE=VALUE]... COMMAND...: runs as root or as vagrant, with the environment of a fresh login; with a time
# limit of $limit seconds, if it is set
clean() {
	if [ "$1" = user ]; then
		shift
		set -- runuser -u vagrant -- env -i HOME=/home/vagrant USER=vagrant LOGNAME=vagrant \
			KIMBOX_CACHE=/persistent/cache/vagrant PIP_CACHE_DIR=/persistent/cache/vagrant/pip \
			PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games "$@"
	else
		shift
		set -- env -i HOME=/root USER=root LOGNAME=root DEBIAN_FRONTEND=noninteractive \
			KIMBOX_CACHE=/persistent/cache PIP_CACHE_DIR=/persistent/cache/pip \
			PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
	fi
	if [ -n "${limit:-}" ]; then
		timeout -k 10 "$limit" "$@"
	else
		"$@"
	fi
}

# limited SECONDS system|user FOLDER COMMAND...: sets $code, and $reason if it is not 0
limited() {
	limit=$1 limit_who=$2 limit_cwd=$3
	shift 3
	limit_variables=/dev/null
	if [ -s "$environment" ]; then
		limit_variables=$environment
		set -- sh -c "$with_environment" sh "$@"
	fi
	now
	started=$now
	(
		cd "$limit_cwd" || exit 1
		TMPDIR='' # or the scratch space, if the box has one
		# shellcheck source=/dev/null
		[ ! -s /run/kimbox/environment ] || . /run/kimbox/environment
		clean "$limit_who" SHELL=/bin/bash LANG=C.UTF-8 PWD="$limit_cwd" \
			KIMBOX_BOX="${KIMBOX_BOX:-}" KIMBOX_VERSION="${KIMBOX_VERSION:-}" \
			KIMBOX_SPEC_DIGEST="${KIMBOX_SPEC_DIGEST:-}" KIMBOX_MANIFEST="${KIMBOX_MANIFEST:-}" \
			KIMBOX_COMMIT="${KIMBOX_COMMIT:-}" ${TMPDIR:+"TMPDIR=$TMPDIR"} \
			"$@"
	) </dev/null 4<&- 5<"$limit_variables" 9>&-
	code=$? allowed=$limit limit=
	[ "$code" -ne 0 ] || return 0
	now
	reason="ended with status $code"
	case $code in
	124 | 137) [ $((now - started)) -lt "$allowed" ] || reason="did not end within $allowed s" ;;
	126) reason="could not be executed (status 126)" ;;
	esac
	if [ "$code" -eq 137 ] && [ "$reason" = "ended with status 137" ]; then
		limit_killed=$(sed -n 's/^oom_kill //p' /sys/fs/cgroup/system.slice/provisiond.service/memory.events 2>/dev/null)
		[ "${limit_killed:-0}" -eq 0 ] || reason="was killed, because the memory of the box was exhausted (status 137)"
	fi
}

# quiet_git system|user ARGUMENT...: git without other configuration, hooks or network
quiet_git() {
	who=$1
	shift
	clean "$who" LC_ALL=C.UTF-8 GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/usr/lib/kimbox/gitconfig GIT_TERMINAL_PROMPT=0 git \
		-c protocol.allow=never -c protocol.file.allow=always -c core.hooksPath=/dev/null -c core.fsmonitor=false \
		-c advice.detachedHead=false -c gc.auto=0 -c submodule.recurse=false "$@"
}

# in_mirror NAME COMMIT: succeeds if the mirror of that name has the commit
in_mirror() {
	[ -s "$mirrors/$1.git/refs/kimbox/$2" ] || grep -qs " refs/kimbox/$2\$" "$mirrors/$1.git/packed-refs"
}

# verified NAME COMMIT [TAGS]: in a sealed box, fetches the commit, and the tags of the file TAGS, from the mirror on /persistent to
# the one on the root. git computes the id of each object that it receives, and checks that none is missing. It runs in neither the
# configuration nor the hooks of the mirror on /persistent: a new repository borrows its objects.
verified() {
	if [ "$mirrors" = "$delivered" ] || in_mirror "$1" "$2"; then return 0; fi
	from=/run/kimbox/git.$1 to=$mirrors/$1.git
	rm -rf "$from"
	{ [ -e "$to/HEAD" ] || quiet_git system init -q --bare --template= "$to"; } &&
		quiet_git system init -q --bare --template= "$from" && mkdir -p "$from/refs/kimbox" "$from/objects/info" &&
		echo "$delivered/$1.git/objects" >"$from/objects/info/alternates" && echo "$2" >"$from/refs/kimbox/$2" &&
		{ [ ! -s "${3:-}" ] || cp "$3" "$from/packed-refs"; } &&
		quiet_git system --git-dir="$to" fetch -q --no-tags --no-write-fetch-head -- "$from" \
			"+refs/tags/*:refs/kimbox-tags/$2/*" "+refs/kimbox/$2:refs/kimbox/$2"
	code=$?
	rm -rf "$from"
	[ "$code" -eq 0 ] || fail 1 "commit $2 is not whole in $delivered/$1.git: an object is missing, or was changed"
}

# owner_of PATH: sets $owner, the account of a checkout: below /home/vagrant it belongs to vagrant
owner_of() {
	case $1 in
	/home/vagrant/*) owner=user ;;
	*) owner=system ;;
	esac
}

# like_clone NAME COMMIT PATH [INSIDE]: gives a checkout the tags and the origin that the manifest has for it. INSIDE is its path in the
# checkout around it, if it is a submodule. Does nothing if the checkout has them.
like_clone() {
	owner_of "$3"
	set_tags "$3/.git" "$at_work/tags/$1/$2" || fail 1 "the tags in $3 cannot be written"
	[ -e "$at_work/origins" ] || return 0
	url=''
	while IFS=$tab read -r line_name line_inside line_url; do
		[ "$line_name $line_inside" != "$1 ${4:-.}" ] || url=$line_url
	done <"$at_work/origins"
	if [ -z "$url" ] || grep -qsxF "${tab}url = $url" "$3/.git/config"; then return 0; fi
	[ ! -e "$3/.git/config.lock" ] || clean "$owner" rm -f "$3/.git/config.lock" # of a power cut
	if ! { quiet_git "$owner" -C "$3" config --replace-all remote.origin.url "$url" &&
		quiet_git "$owner" -C "$3" config --replace-all remote.origin.fetch '+refs/heads/*:refs/remotes/origin/*'; }; then
		fail 1 "the origin of $3 cannot be written"
	fi
}

# set_tags FOLDER FILE: replaces the tags of the last manifest in a .git folder by those in FILE, if it exists. Tags that were made in the
# box stay, also after `git pack-refs`. $owner writes.
set_tags() {
	if [ -e "$2" ]; then
		new_tags=$2
	else
		[ -e "$1/kimbox-tags" ] || return 0
		new_tags=/dev/null
	fi
	# shellcheck disable=SC2016 # for the inner shell
	clean "$owner" sh -c 'set -e
		cd "$1"
		if cmp -s "$2" kimbox-tags; then exit; fi
		touch packed-refs kimbox-tags
		cat "$2" kimbox-tags | awk "!is_old { drop[\$0]; next } !/^[#^]/ && !(\$0 in drop)" - is_old=1 packed-refs >packed-refs.new
		cat "$2" >>packed-refs.new
		mv -f packed-refs.new packed-refs
		cat "$2" >kimbox-tags' sh "$1" "$new_tags"
}

# trust_checkouts: lets every account run git in the checkouts of the manifest that belong to root
trust_checkouts() {
	trusted=/var/lib/kimbox/gitconfig trusted_from=$at_work/gitconfig
	[ -e "$trusted_from" ] || trusted_from=/dev/null
	if cmp -s "$trusted_from" "$trusted"; then return 0; fi
	if ! { mkdir -p "${trusted%/*}" && cat "$trusted_from" >"$trusted.new" && mv -f "$trusted.new" "$trusted"; }; then
		fail 1 "cannot write $trusted: is the root file system full?"
	fi
}

# checkout NAME COMMIT PATH [INSIDE]: a clean working tree of exactly that commit, which borrows its objects from the mirror. INSIDE as for
# like_clone.
checkout() {
	mirror=$mirrors/$1.git commit=$2 path=$3
	owner_of "$path"
	verified "$1" "$commit" "$at_work/tags/$1/$2"
	in_mirror "$1" "$commit" ||
		fail 1 "commit $commit is not in $mirror: let the host deliver it again"
	# An empty .git is of a run that ended at once. `find` prints nothing for what is no folder.
	if [ -e "$path" ] && ! [ -e "$path/.git/kimbox" ] &&
		{ ! [ -d "$path" ] || [ -n "$(find -H "$path" -mindepth 1 ! \( -name .git -type d \) -print -quit 2>&1)" ]; }; then
		fail 1 "$path is not empty and is not a checkout that kimbox made: move or remove it, then provision again"
	fi
	# Submodules of the previous commit: this commit may have none there. Untracked files below them would be removed anyway.
	if [ -e "$path/.git/kimbox-submodules" ]; then
		# shellcheck disable=SC2016 # for the inner shell
		clean "$owner" sh -c 'find "$1" -mindepth 2 -name .git -prune -print0 | sed -z "s,/[.]git\$,," | xargs -0r rm -rf -- &&
			rm -f "$1/.git/kimbox-submodules"' sh "$path" || fail 1 "the submodules in $path cannot be removed"
	fi
	# shellcheck disable=SC2016 # for the inner shell
	begin='mkdir -p "$1/.git" && : >"$1/.git/kimbox" && rm -f "$1"/.git/*.lock' # the mark first: a new delivery ends this run
	# shellcheck disable=SC2016 # for the inner shell
	borrow='echo "$1" >"$2/.git/objects/info/alternates"'
	if ! { clean "$owner" sh -c "$begin" sh "$path" && quiet_git "$owner" init -q --template= "$path" &&
		clean "$owner" sh -c "$borrow" sh "$mirror/objects" "$path" &&
		quiet_git "$owner" -C "$path" checkout -q --force --detach "$commit" &&
		quiet_git "$owner" -C "$path" clean -ffdxq; }; then
		fail 1 "$path cannot be brought to commit $commit"
	fi
	read -r head <"$path/.git/HEAD"
	[ "$head" = "$commit" ] || fail 1 "$path is at $head in place of $commit"
	like_clone "$1" "$commit" "$path" "${4:-}"
}

# find_setup: sets $setup_commit and $setup_path from the current manifest; fails if it has no setup repository
find_setup() {
	while IFS=$tab read -r line_name setup_commit setup_path; do
		[ "$line_name" != setup ] || return 0
	done <"$at_work/repositories"
	return 1
}

need_root() {
	[ "$(id -u)" -eq 0 ] || {
		echo "$1 needs root: sudo $1" >&2
		exit 1
	}
}

# one_at_a_time: waits for another run to end; fd 9 holds the lock
one_at_a_time() {
	[ -d /run/kimbox ] || mkdir -p /run/kimbox
	exec 9>/run/kimbox/lock
	flock -w 600 9 || {
		echo "another run has not ended for 10 minutes" >&2
		exit 1
	}
}
