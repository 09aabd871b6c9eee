//go:build linux

package timesync

import (
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// RTC is the clock with the battery.
const RTC = "/dev/rtc0"

// System is the machine's Clock. It needs CAP_SYS_TIME.
type System struct {
	RTC string // path of the device; empty: none
}

// Now implements Clock.
func (System) Now() time.Time { return time.Now().Round(0) }

// Step implements Clock.
func (System) Step(offset time.Duration) error {
	seconds, rest := offset/time.Second, offset%time.Second
	if rest < 0 {
		seconds, rest = seconds-1, rest+time.Second
	}
	tx := unix.Timex{Modes: unix.ADJ_SETOFFSET | unix.ADJ_NANO}
	tx.Time.Sec, tx.Time.Usec = int64(seconds), int64(rest)
	if _, err := unix.Adjtimex(&tx); err != nil {
		return fmt.Errorf("adjtimex: %w", err)
	}
	return nil
}

// Slew implements Clock with the kernel's phase-locked loop, which corrects the
// clock's frequency too: RFC 5905, section 11.3 and appendix A.
func (System) Slew(offset, poll, distance time.Duration) error {
	tx := slew(offset, poll, distance)
	if _, err := unix.Adjtimex(&tx); err != nil {
		return fmt.Errorf("adjtimex: %w", err)
	}
	return nil
}

// slew returns what adjtimex(2) gets. Without STA_UNSYNC the kernel keeps the
// clock with the battery right by itself.
func slew(offset, poll, distance time.Duration) unix.Timex {
	us := int64(distance / time.Microsecond)
	return unix.Timex{
		Modes:    unix.ADJ_OFFSET | unix.ADJ_NANO | unix.ADJ_STATUS | unix.ADJ_TIMECONST | unix.ADJ_MAXERROR | unix.ADJ_ESTERROR,
		Offset:   int64(offset),
		Status:   unix.STA_PLL,
		Constant: int64(max(0, bits.Len64(uint64(poll/time.Second))-1-4)), // log2 of the poll interval, less 4
		Maxerror: us,
		Esterror: us,
	}
}

// Save implements Clock. The battery's clock has whole seconds, in UTC.
func (s System) Save() error {
	if s.RTC == "" {
		return nil
	}
	f, err := os.OpenFile(s.RTC, os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a machine without
	}
	if err != nil {
		return err
	}
	defer f.Close()
	t := time.Now().UTC().Round(time.Second)
	err = unix.IoctlSetRTCTime(int(f.Fd()), &unix.RTCTime{Sec: int32(t.Second()), Min: int32(t.Minute()), Hour: int32(t.Hour()),
		Mday: int32(t.Day()), Mon: int32(t.Month()) - 1, Year: int32(t.Year()) - 1900})
	if err != nil {
		return fmt.Errorf("%s: %w", s.RTC, err)
	}
	return nil
}
