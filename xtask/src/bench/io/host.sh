# Starts the machine that the words $@ say, whose serial port is their standard input and output, and has its guest do what the lines
# of this script's own input say, each NAME SIZE COMMAND. Prints a line for each: counted NAME SIZE INSTRUCTIONS SLEEPS.
to=/tmp/to-guest from=/tmp/from-guest errors=/tmp/errors
rm -f $to $from
mkfifo $to $from || exit
"$@" <$to >$from 2>$errors &
exec 3>$to 4<$from

# Waits until the guest says that it is ready for more, at most $1 seconds of the machine's time; what else it says is why it is not.
# A guest that says nothing is stuck, which is status 75.
hear() {
    while read -t "$1" -r line <&4; do
        case $line in
            *"io: ready"*) return ;;
            *"io: failed"*) cat $errors >&2; exit 1 ;;
        esac
        echo "$line" >&2
    done
    cat $errors >&2
    kill -9 $!
    exit 75
}

# What the CPU has executed, and how often it went to sleep. Sleeping takes time here, but no instructions.
count() {
    awk '/^now at/ { now = $3 }
         /\.(idle|iowait)_sleeptime/ { sub(/.*: */, ""); asleep += $1 }
         /\.idle_calls/ { sub(/.*: */, ""); sleeps = $1 }
         END { printf "%.0f %.0f\n", now - asleep, sleeps }' /proc/timer_list
}

hear 60
while read -r name size command; do
    set -- $(count)
    echo "$command" >&3
    hear 4
    set -- "$@" $(count)
    echo "counted $name $size $(($3 - $1)) $(($4 - $2))"
done
echo 'poweroff -f' >&3
wait $!
