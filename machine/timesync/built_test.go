package timesync

import (
	"testing"
	"time"
)

func TestBuilt(t *testing.T) {
	for version, want := range map[string]time.Time{
		"#1 SMP PREEMPT_DYNAMIC Debian 6.12.1-1 (2024-11-22)":   time.Date(2024, 11, 22, 0, 0, 0, 0, time.UTC),
		"#1 SMP PREEMPT_DYNAMIC Fri Nov 22 12:34:56 UTC 2024":   time.Date(2024, 11, 22, 12, 34, 56, 0, time.UTC),
		"#1 SMP PREEMPT_DYNAMIC Fri Nov  1 12:34:56 UTC 2024\n": time.Date(2024, 11, 1, 12, 34, 56, 0, time.UTC),
		"#1 SMP PREEMPT_DYNAMIC @0":                             {},
		"#1 SMP Debian 6.12.1-1 (2024-13-22)":                   {},
		"":                                                      {},
	} {
		if got := Built(version); !got.Equal(want) {
			t.Errorf("%q: %v, want %v", version, got, want)
		}
	}
}
