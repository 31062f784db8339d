# The guest's end of the serial port: does the commands that come, one after another.
stty raw -echo
ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
echo "io: ready"
while read -r command; do
    if eval "$command" >/tmp/output 2>&1; then
        echo "io: ready"
    else
        cat /tmp/output
        echo "io: failed"
    fi
done
