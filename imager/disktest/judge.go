package disktest

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
)

// Run runs a program, which must succeed, and returns what it prints.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), oracle.Tool(t, name), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Judge has qemu-img check an image, compare it with the file of the raw disk,
// and say the size of the disk. The format is QEMU's name of it.
func Judge(t testing.TB, format, raw, image string) {
	t.Helper()
	if format != "vpc" { // QEMU has no check for it
		if out := Run(t, "qemu-img", "check", "-f", format, image); !strings.Contains(out, "No errors were found on the image.\n") {
			t.Errorf("qemu-img check:\n%s", out)
		}
	}
	disk := Sparse(t, raw)
	// QEMU has no map of the holes in a VHDX image and reads them all, so of a
	// large disk only the surroundings of data are compared.
	const large, margin = 1 << 30, 8 << 20
	windows := []extent.Extent{{Length: disk.Size()}}
	if format == "vhdx" && disk.Size() > large {
		windows = disk.Extents()
	}
	for _, w := range windows {
		from, to := max(0, w.Offset/512*512-margin), min(disk.Size(), extent.Align(w.End(), 512)+margin)
		args := []string{"compare", "-f", "raw", "-F", format, raw, image}
		if to-from < disk.Size() {
			window := fmt.Sprintf("driver=raw,offset=%d,size=%d,", from, to-from)
			args = []string{"compare", "--image-opts", window + "file.filename=" + raw, window + "file.driver=" + format + ",file.file.filename=" + image}
		}
		if out := Run(t, "qemu-img", args...); out != "Images are identical.\n" {
			t.Errorf("qemu-img compare from %d to %d:\n%s", from, to, out)
		}
	}
	var info struct {
		Size int64 `json:"virtual-size"`
	}
	out := Run(t, "qemu-img", "info", "-f", format, "--output=json", image)
	if err := json.Unmarshal([]byte(out), &info); err != nil || info.Size != disk.Size() {
		t.Errorf("qemu-img info, want a disk of %d bytes (%v):\n%s", disk.Size(), err, out)
	}
}
