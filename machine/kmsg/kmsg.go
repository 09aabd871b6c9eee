//go:build linux

// Package kmsg reads the kernel's log from /dev/kmsg.
//
// Every read of the device returns one record,
//
//	PRIORITY,SEQUENCE,MICROSECONDS,FLAGS[,…];MESSAGE
//	 KEY=VALUE
//
// where PRIORITY is facility*8+level as in syslog(3), the kernel's own facility
// is 0, bytes that do not print are written as \xHH, and the indented lines name
// the device that the message is about. See dev-kmsg in the kernel's ABI
// documentation.
package kmsg

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// maxRecord is more than the kernel makes of one message, in bytes.
const maxRecord = 16 << 10

// A Record is one message.
type Record struct {
	Facility int // 0 is the kernel
	Level    int // 0 emergency to 7 debug
	Message  string
	Sequence uint64        // one more than that of the message before
	Time     time.Duration // since the kernel's start
}

// Parse parses what one read of the device returned.
func Parse(data string) (Record, error) {
	head, rest, ok := strings.Cut(data, ";")
	fields := strings.Split(head, ",")
	if len(fields) < 3 {
		ok, fields = false, make([]string, 3)
	}
	priority, err1 := strconv.ParseUint(fields[0], 10, 31)
	sequence, err2 := strconv.ParseUint(fields[1], 10, 64)
	microseconds, err3 := strconv.ParseUint(fields[2], 10, 53)
	if !ok || err1 != nil || err2 != nil || err3 != nil {
		return Record{}, fmt.Errorf("kernel log: found %.80q, want \"PRIORITY,SEQUENCE,TIME,FLAGS;MESSAGE\"", data)
	}
	message, _, _ := strings.Cut(rest, "\n")
	return Record{int(priority / 8), int(priority % 8), unescape(message), sequence, time.Duration(microseconds) * time.Microsecond}, nil
}

func unescape(s string) string {
	var b strings.Builder
	for {
		i := strings.Index(s, `\x`)
		if i < 0 || len(s) < i+4 {
			return b.String() + s
		}
		b.WriteString(s[:i])
		if c, err := strconv.ParseUint(s[i+2:i+4], 16, 8); err == nil {
			b.WriteByte(byte(c))
		} else {
			b.WriteString(s[i : i+4])
		}
		s = s[i+4:]
	}
}

// A Log reads the messages that come after it was opened.
type Log struct{ fd int }

// Open opens the log at its end.
func Open(path string) (*Log, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	if _, err := unix.Seek(fd, 0, unix.SEEK_END); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("seek to the end of %s: %w", path, err)
	}
	return &Log{fd}, nil
}

// Read returns the messages since Open or the last Read. It does not wait.
func (l *Log) Read() []Record {
	var records []Record
	buf := make([]byte, maxRecord)
	for {
		n, err := unix.Read(l.fd, buf)
		switch {
		case errors.Is(err, unix.EINTR) || errors.Is(err, unix.EPIPE): // overwritten before they were read
			continue
		case err != nil || n == 0:
			return records
		}
		if r, err := Parse(string(buf[:n])); err == nil {
			records = append(records, r)
		}
	}
}

// Close closes the log.
func (l *Log) Close() error { return unix.Close(l.fd) }
