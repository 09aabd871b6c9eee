//go:build linux

package stage

import "testing"

func TestReserve(t *testing.T) {
	for total, want := range map[uint64]uint64{0: 4096, 128 << 10: 4096, 1 << 20: 10485, 16 << 20: 167772} {
		if got := reserve(total); got != want {
			t.Errorf("%d KiB: %d, want %d", total, got, want)
		}
	}
}
