package timesync

import (
	"strings"
	"time"
)

// Built returns when a kernel was built, by the version of uname(2); zero if that
// does not say. It is a time that is certainly past, without a clock:
//
//	#1 SMP PREEMPT_DYNAMIC Debian 6.12.1-1 (2024-11-22)
//	#1 SMP PREEMPT_DYNAMIC Fri Nov 22 12:34:56 UTC 2024
func Built(version string) time.Time {
	words := strings.Fields(version)
	if n := len(words); n > 0 {
		if t, err := time.Parse("("+time.DateOnly+")", words[n-1]); err == nil {
			return t
		}
	}
	if n := len(words); n >= 6 {
		if t, err := time.Parse(time.UnixDate, strings.Join(words[n-6:], " ")); err == nil {
			return t.UTC()
		}
	}
	return time.Time{}
}
