//go:build linux

package stage

import (
	"os"
	"strconv"
	"strings"
)

const (
	hugePages = "/sys/kernel/mm/transparent_hugepage/enabled"
	minFree   = "/proc/sys/vm/min_free_kbytes"
)

// sparing makes the kernel sparing with memory where it is configured for speed on
// large machines.
//
// Huge pages are for the programs that ask for them (madvise): what programs have
// touched once takes 2 MiB each time otherwise, a third more for those of a node. For
// huge pages the kernel also keeps up to a twentieth of the memory free, which no
// program gets: a hundredth is enough on machines where that is more than what the
// kernel keeps without them. A kernel without huge pages is as it should be.
func sparing() {
	data, err := os.ReadFile(hugePages)
	if err != nil || !strings.Contains(string(data), "[always]") {
		return
	}
	_ = os.WriteFile(hugePages, []byte("madvise"), 0)
	if data, err = os.ReadFile(minFree); err != nil {
		return
	}
	now, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 40)
	if want := reserve(memory() >> 10); err == nil && want < now {
		_ = os.WriteFile(minFree, strconv.AppendUint(nil, want, 10), 0)
	}
}

// leastReserve is what is kept free at least, in KiB: more than the kernel keeps
// without huge pages if there is less than 1 GiB.
const leastReserve = 4 << 10

// reserve returns how much is to be kept free of so much memory, both in KiB.
func reserve(total uint64) uint64 { return max(total/100, leastReserve) }
