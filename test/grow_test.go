//go:build linux

package test

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/vm"
	"github.com/kilnhq/kiln/internal/oracle"
)

var growLine = regexp.MustCompile(`(^|\] )kiln: stage=grow `)

// An image that was written to a larger disk fills it after the first start.
func TestGrow(t *testing.T) {
	t.Parallel()
	disk := copySparse(t, oracle.Artifact(t, "KILN_IMAGE"))
	const size = 3 << 30
	if err := os.Truncate(disk, size); err != nil {
		t.Fatal(err)
	}
	want := int64(size - 1<<20) // the end; the table's copy needs less than 1 MiB
	for _, grown := range []string{"true", "false"} {
		t.Run("grown="+grown, func(t *testing.T) { // so that the machine is gone
			ctx, m := start(t, vm.Config{Image: disk, Firmware: vm.UEFI})
			line, err := m.Wait(ctx, growLine)
			if err != nil {
				t.Fatal(err)
			}
			ready(t, ctx, m)
			shutdown(t, ctx, m)
			p := readTable(t, disk, 512).find(t, "EPHEMERAL")
			if p.start+p.size != want {
				t.Errorf("EPHEMERAL ends at %d, want %d", p.start+p.size, want)
			}
			told, _, err := parseMilestone(line)
			if err != nil || told.fields["grown"] != grown || told.fields["bytes"] != fmt.Sprint(p.size) {
				t.Errorf("%s: %v; want grown=%s bytes=%d", line, err, grown, p.size)
			}
			out := run(t, oracle.Tool(t, "sgdisk"), "-v", disk)
			if !strings.Contains(out, "No problems found") || sgdiskComplaint.MatchString(out) {
				t.Errorf("sgdisk -v: %s", out)
			}
			part := carve(t, disk, p)
			run(t, oracle.Tool(t, "e2fsck"), "-fn", part)
			if out := run(t, oracle.Tool(t, "dumpe2fs"), "-h", part); !strings.Contains(out, fmt.Sprintf("Block count:              %d\n", p.size/4096)) {
				t.Errorf("dumpe2fs: %s", out)
			}
		})
	}
}
