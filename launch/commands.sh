# shellcheck shell=bash
# What the launchers share: their options, how commands are shown and run, and
# what follows the exit code of a run. Sourced, not run.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "error: the launchers need bash 4.4 or newer, not $BASH_VERSION." >&2
  exit 1
fi

# A launcher declares its options here with their defaults; "no" makes a switch.
declare -A option=([dry-run]=no)
# Options that may be given several times, each as an array of this name.
lists=''
# Flags of audio_mae_jax.main that the launchers add: a run which a signal has
# stopped is not to look like one that came to its end.
added=(--stopped_status=75)
# All of its flags. What the user gives after "--" comes last, and wins.
train=()

stop() {
  printf '\nerror: %s\n' "$*" >&2
  exit 1
}

say() {
  dry || printf '%(%H:%M:%S)T %s\n' -1 "$*" >&2
}

dry() {
  [[ ${option[dry-run]} = yes ]]
}

# The comment at the top of a launcher is its help.
help() {
  sed -n '1d; /^$/q; s/^#\( \|$\)//p' "$0"
}

parse() {
  local name value
  while (($#)); do
    name=${1#--}
    name=${name%%=*}
    value=${1#*=}
    case $1 in
      --)
        train=("${added[@]}" "${@:2}")
        return
        ;;
      --help)
        help
        exit
        ;;
      --*=*)
        if [[ " $lists " = *" $name "* ]]; then
          local -n values=${name//-/_}
          values+=("$value")
        elif [[ -v option[$name] && ${option[$name]} != @(yes|no) ]]; then
          option[$name]=$value
        else
          stop "there is no option --$name=VALUE; see $0 --help." \
            'Flags of the training command stand after "--".'
        fi
        ;;
      --*)
        [[ -v option[$name] && ${option[$name]} = @(yes|no) ]] ||
          stop "there is no option $1; see $0 --help. Values follow an" \
            '"=", and flags of the training command stand after "--".'
        option[$name]=yes
        ;;
      *) stop "unexpected argument '$1'; see $0 --help." ;;
    esac
    shift
  done
}

# require OPTION...: each of them must have a value.
require() {
  local name
  for name; do
    [[ ${option[$name]} ]] || stop "--$name=VALUE is missing; see $0 --help."
  done
}

require_number() {
  local name
  for name; do
    [[ ${option[$name]} =~ ^[0-9]+$ ]] ||
      stop "--$name must be a whole number, not '${option[$name]}'."
  done
}

require_recipe() {
  [[ " ${train[*]}" = *' --config='* ]] ||
    stop 'the recipe is missing: -- --config=configs/pretrain_as2m.py' \
      '[--config.FIELD=VALUE ...]'
}

# require_workdir WHAT: the run's place must outlive WHAT, which has disks of its
# own.
require_workdir() {
  local flag workdir=''
  for flag in "${train[@]}"; do
    [[ $flag != --config.workdir=* ]] || workdir=${flag#*=}
  done
  [[ $workdir = *://* || $workdir = /* ]] ||
    stop "--config.workdir='$workdir' is on the disk of each worker, which" \
      "is lost with $1. Add --config.workdir=gs://BUCKET/RUN, or the" \
      'absolute path of a file system that all workers mount.'
}

# The command as a shell reads it back, word by word.
quoted() {
  local word line=''
  for word; do
    if [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then
      line+=" $word"
    else
      line+=" ${word@Q}"
    fi
  done
  printf '%s\n' "${line:1}"
}

# Answers of commands are captured, so what is shown needs its own way out;
# commands do not inherit it, for those that outlive this one keep it open.
exec 3>&1

show() {
  if dry; then
    quoted "$@" >&3
  else
    printf '+ %s\n' "$(quoted "$@")" >&2
  fi
}

run() {
  show "$@"
  dry || "$@" 3>&-
}

# ask ANSWER COMMAND...: what the command prints; in a dry run, ANSWER.
ask() {
  show "${@:2}"
  if dry; then
    printf '%s\n' "$1"
  else
    "${@:2}" 3>&-
  fi
}

# What follows the exit codes of all processes of a run: "end", "again" or
# "stop". 1 is an error that another try would not mend, and so is a command
# that is not there; 75 and whatever else ended a process are.
next_step() {
  local code step=end
  for code; do
    case $code in
      0) ;;
      1 | 126 | 127)
        step=stop
        break
        ;;
      *) step=again ;;
    esac
  done
  echo "$step"
}

resumes=0

# count_resume WHY: fails when the run was resumed as often as allowed.
count_resume() {
  local most=${option[max-resumes]}
  if ((resumes >= most)); then
    printf '\nerror: %s, and the run was resumed %s times already %s\n' \
      "$1" "$resumes" "(--max-resumes=$most). The same command goes on." >&2
    return 1
  fi
  resumes=$((resumes + 1))
  say "$1; resuming ($resumes of $most)."
}
