# shellcheck shell=sh
# shellcheck disable=SC2034 # some of it is used by those who source it
# Records of what was done on this root, and with which commits. Sourced; starts no program.
#
# A record is a file in /var/lib/kimbox/done. Its first line is a digest of what was done. In the record of `setup` or of a step
# one line follows for each repository of the manifest with which it ran (name, tab, commit, and " with submodules" if it has
# some), and then the line `end`. Records of images made by an older kimbox have only the first line.
#
#   $pins    the same lines for the current manifest: written to the next record, and compared with earlier ones
#   $stale   the steps that ran with another commit than the manifest has, as words STEP:REPOSITORY@COMMIT[,REPOSITORY@COMMIT]...
#            with the commits with which they ran

# Records lie on the root: a new root has none, and a root that was kept has those of what was done on it.
record=/var/lib/kimbox/done
pin_tab='	'
pin_line='
'

# Limits on $stale, which is part of an event, in bytes: with commits up to the first, then only names up to the second.
STALE_BYTES=2500
STALE_NAMES_BYTES=3000

# read_pins FOLDER: sets $pins from the manifest in the folder, with a line break before and after each line
read_pins() {
	pins=$pin_line pin_inner=' '
	if [ -r "$1/submodules" ]; then
		while IFS=$pin_tab read -r pin_name _; do
			case $pin_inner in *" $pin_name "*) ;; *) pin_inner="$pin_inner$pin_name " ;; esac
		done <"$1/submodules"
	fi
	[ -r "$1/repositories" ] || return 0
	while IFS=$pin_tab read -r pin_name pin_commit _; do
		case $pin_inner in *" $pin_name "*) pin_commit="$pin_commit with submodules" ;; esac
		pins="$pins$pin_name$pin_tab$pin_commit$pin_line"
	done <"$1/repositories"
}

# read_record FILE: sets $record_digest, $record_pins (as $pins), and $record_end to yes if the record has its last line.
# Fails if there is no record.
read_record() {
	record_digest='' record_pins=$pin_line record_end=''
	[ -s "$1" ] || return 1
	{
		IFS= read -r record_digest
		while IFS= read -r pin_read; do
			case $pin_read in
			end) record_end=yes ;;
			*"$pin_tab"*) record_pins="$record_pins$pin_read$pin_line" ;;
			esac
		done
	} <"$1"
	[ -n "$record_digest" ]
}

# is_done_under FILE DIGEST USES: succeeds if that record has this digest, and each repository in USES (names separated by blanks;
# `-` or empty for none) was then at the commit that $pins has
is_done_under() {
	read_record "$1" && [ "$record_digest" = "$2" ] || return 1
	for pin_name in $3; do
		[ "$pin_name" != - ] || continue
		pin_wanted=${pins#*"$pin_line$pin_name$pin_tab"}
		pin_wanted=$pin_name$pin_tab${pin_wanted%%"$pin_line"*}
		case $record_pins in *"$pin_line$pin_wanted$pin_line"*) ;; *) return 1 ;; esac
	done
}

# find_former USES: sets $former to the pins of the record that was last read which $pins does not have: REPOSITORY@COMMIT, separated
# by commas. Only for the repositories in USES; for all if it is empty; for none if it is `-`.
find_former() {
	former=''
	[ "$1" != - ] || return 0
	pin_rest=${record_pins#"$pin_line"}
	while [ -n "$pin_rest" ]; do
		pin_read=${pin_rest%%"$pin_line"*}
		pin_rest=${pin_rest#*"$pin_line"}
		pin_name=${pin_read%%"$pin_tab"*} pin_commit=${pin_read#*"$pin_tab"}
		case " $1 " in "  " | *" $pin_name "*) ;; *) continue ;; esac
		case $pins in *"$pin_line$pin_read$pin_line"*) continue ;; esac
		pin_commit=${pin_commit%% *}
		case $pin_name$pin_commit in *[!a-z0-9-]*) continue ;; esac
		former="$former${former:+,}$pin_name@$pin_commit"
	done
}

# add_stale STEP FILE DIGEST USES: adds the step to $stale if that record is of this step with another commit
add_stale() {
	read_record "$2" && [ "$record_digest" = "$3" ] || return 0
	find_former "$4"
	[ -n "$former" ] || return 0
	pin_word=$1:$former
	[ $((${#stale} + ${#pin_word})) -le "$STALE_BYTES" ] || pin_word=$1
	[ $((${#stale} + ${#pin_word})) -le "$STALE_NAMES_BYTES" ] || return 0
	stale="$stale${stale:+ }$pin_word"
}

# find_stale FOLDER: sets $stale and $pins for the manifest in the folder
find_stale() {
	stale=''
	read_pins "$1"
	[ -r "$1/repositories" ] || return 0
	IFS=$pin_tab read -r pin_name pin_commit pin_path <"$1/repositories" || return 0 # without repositories nothing moves
	[ "$pin_name" != setup ] || add_stale setup "$record/setup-setup" "$pin_commit $pin_path" ''
	for pin_folder in "$1"/steps/*; do
		[ -r "$pin_folder/env" ] || continue
		KIMBOX_STEP_USES=''
		# shellcheck source=/dev/null
		. "$pin_folder/env"
		case $KIMBOX_STEP_RUN in
		once) add_stale "$KIMBOX_STEP" "$record/provision-$KIMBOX_STEP" "$KIMBOX_STEP_DIGEST" "$KIMBOX_STEP_USES" ;;
		boot) add_stale "$KIMBOX_STEP" "/run/kimbox/done/provision-$KIMBOX_STEP" "$KIMBOX_STEP_DIGEST" "$KIMBOX_STEP_USES" ;;
		esac
	done
}
