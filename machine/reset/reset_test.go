package reset

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/ext4"
	"github.com/kilnhq/kiln/imager/gpt"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/internal/powercut"
	"github.com/kilnhq/kiln/machine/meta"
	"github.com/kilnhq/kiln/rootfs/tree"
)

const mib = 1 << 20

var (
	stateAt     = gpt.Partition{Type: gpt.LinuxFilesystem, ID: gpt.GUID{3}, Name: State, Start: 2 * mib, Size: mib}
	ephemeralAt = gpt.Partition{Type: gpt.LinuxFilesystem, ID: gpt.GUID{4}, Name: Ephemeral, Start: 3 * mib, Size: mib}
)

// uuids returns different UUIDs, the same for every caller.
func uuids() func() [16]byte {
	n := byte(0)
	return func() [16]byte {
		n++
		return [16]byte{n, 6: 0x40, 8: 0x80}
	}
}

// newDisk is a small disk with a file in STATE and in EPHEMERAL.
func newDisk(t *testing.T, v meta.Values) *powercut.Disk {
	t.Helper()
	disk := powercut.New(make([]byte, 5*mib))
	table := gpt.Table{DiskID: gpt.GUID{1}, SectorSize: 512, Size: disk.Size(), Partitions: []gpt.Partition{
		{Type: gpt.LinuxFilesystem, ID: gpt.GUID{2}, Name: meta.Label, Start: mib, Size: mib}, stateAt, ephemeralAt,
	}}
	if err := table.Store(disk); err != nil {
		t.Fatal(err)
	}
	if err := meta.Write(meta.Section(disk, mib, mib), v); err != nil {
		t.Fatal(err)
	}
	for _, p := range []gpt.Partition{stateAt, ephemeralAt} {
		files := tree.New()
		if err := files.Add("secret", &tree.Inode{Mode: 0o600, Content: strings.NewReader(p.Name + " secret")}); err != nil {
			t.Fatal(err)
		}
		fs, err := ext4.Build(files, ext4.Options{Size: p.Size, Label: p.Name})
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(io.NewSectionReader(fs, 0, fs.Size()))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := disk.WriteAt(data, p.Start); err != nil {
			t.Fatal(err)
		}
	}
	return powercut.New(disk.Bytes())
}

// run does what a node does at its start.
func run(disk *powercut.Disk, argument Parts) (Parts, error) {
	p, err := Requested(disk, disk.Size())
	if err != nil {
		return p, err
	}
	if p = p.Union(argument); p == (Parts{}) {
		return p, nil
	}
	_, err = Run(disk, disk.Size(), p, Options{UUID: uuids(), Time: 1e9})
	return p, err
}

func content(b []byte, p gpt.Partition) []byte { return b[p.Start:p.End()] }

func TestRun(t *testing.T) {
	for _, tt := range []struct {
		request, argument string
		state, ephemeral  bool
	}{
		{"", "", false, false},
		{"ephemeral", "", false, true},
		{"state\n", "", true, false},
		{"", "state", true, false},
		{"state", "ephemeral", true, true},
		{"state, ephemeral", "", true, true},
		{"", "all", true, true},
	} {
		values := meta.Values{meta.User1: []byte("stays")}
		if tt.request != "" {
			values[meta.ResetRequest] = []byte(tt.request)
		}
		disk := newDisk(t, values)
		before := disk.Bytes()
		var argument Parts
		if tt.argument != "" {
			var err error
			if argument, err = Parse(tt.argument); err != nil {
				t.Fatal(err)
			}
		}
		if p, err := run(disk, argument); err != nil || p != (Parts{tt.state, tt.ephemeral}) {
			t.Errorf("%+v: %v, %v", tt, p, err)
		}
		after := disk.Bytes()
		for _, part := range []struct {
			gpt.Partition
			erased bool
		}{{stateAt, tt.state}, {ephemeralAt, tt.ephemeral}} {
			data := content(after, part.Partition)
			if same := bytes.Equal(data, content(before, part.Partition)); same == part.erased {
				t.Errorf("%+v: %s is the same: %v", tt, part.Name, same)
			}
			if part.erased {
				empty(t, part.Name, data)
			}
		}
		contents, err := meta.Read(meta.Section(disk, mib, mib), mib)
		if err != nil || contents.Degraded != nil || len(contents.Values) != 1 || string(contents.Values[meta.User1]) != "stays" {
			t.Errorf("%+v: META %+v, %v", tt, contents, err)
		}
		operations := disk.Operations()
		if _, err := run(disk, Parts{}); err != nil || disk.Operations() != operations {
			t.Errorf("%+v: the next start: %v, writes %d times", tt, err, disk.Operations()-operations)
		}
	}
}

// empty wants data to be an empty file system with nothing of the old one.
func empty(t *testing.T, label string, data []byte) {
	t.Helper()
	if bytes.Contains(data, []byte("secret")) {
		t.Errorf("%s still has a secret", label)
	}
	file := filepath.Join(t.TempDir(), label)
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(oracle.Tool(t, "e2fsck"), "-fn", file).CombinedOutput(); err != nil || !strings.Contains(string(out), label+": 11/") {
		t.Errorf("e2fsck %s: %v\n%s", label, err, out)
	}
}

// Wherever a reset is cut, the next start completes it; and as long as META asks
// for nothing, or for nothing any more, the file systems are the old or the new
// ones, whole.
func TestCut(t *testing.T) {
	all := Parts{true, true}
	for _, tt := range []struct {
		name     string
		values   meta.Values
		argument Parts
	}{
		{"META", meta.Values{meta.ResetRequest: []byte("all"), meta.User1: []byte("stays")}, Parts{}},
		{"argument", meta.Values{meta.User1: []byte("stays")}, all},
	} {
		t.Run(tt.name, func(t *testing.T) {
			disk := newDisk(t, tt.values)
			before := disk.Bytes()
			if _, err := run(disk, tt.argument); err != nil {
				t.Fatal(err)
			}
			after := disk.Bytes()
			repeated, untouched, done := 0, 0, 0
			n, err := disk.Cuts(7, 3, func(c powercut.Cut) error {
				again := powercut.New(bytes.Clone(c.Content))
				p, err := run(again, Parts{}) // an argument is given once
				if err != nil {
					return err
				}
				want := after
				switch {
				case p == all:
					repeated++
				case p != Parts{}:
					return fmt.Errorf("asked for %v", p)
				case bytes.Equal(content(c.Content, stateAt), content(before, stateAt)):
					untouched++
					want = before
				default:
					done++
				}
				got := again.Bytes()
				for _, part := range []gpt.Partition{stateAt, ephemeralAt} {
					if !bytes.Equal(content(got, part), content(want, part)) {
						return fmt.Errorf("%s is neither old nor new", part.Name)
					}
				}
				contents, err := meta.Read(meta.Section(again, mib, mib), mib)
				if err != nil || len(contents.Values) != 1 || string(contents.Values[meta.User1]) != "stays" {
					return fmt.Errorf("META %+v, %v", contents, err)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			t.Logf("%d states: %d untouched, %d repeated, %d done", n, untouched, repeated, done)
			if repeated < 20 || done == 0 || (untouched > 0) != (tt.argument == all) {
				t.Errorf("%d untouched, %d repeated, %d done", untouched, repeated, done)
			}
		})
	}
}

// A write that fails is told of, and META asks still: the next start tries again.
func TestFault(t *testing.T) {
	broken := errors.New("broken")
	disk := newDisk(t, meta.Values{})
	if _, err := run(disk, Parts{true, true}); err != nil {
		t.Fatal(err)
	}
	for fault := range disk.Operations() {
		disk := newDisk(t, meta.Values{})
		before := content(disk.Bytes(), stateAt)
		disk.Fail = func(n int) error {
			if n == fault {
				return broken
			}
			return nil
		}
		_, err := run(disk, Parts{true, true})
		disk.Fail = nil
		if !errors.Is(err, broken) {
			t.Errorf("operation %d: %v", fault, err)
		}
		p, err := run(disk, Parts{})
		if err != nil {
			t.Errorf("after operation %d failed: %v", fault, err)
		}
		if now := content(disk.Bytes(), stateAt); p == (Parts{true, true}) || !bytes.Equal(now, before) {
			empty(t, State, now)
		}
	}
}

// A device that cannot discard is told of, one that cannot zero is an error.
func TestNoDiscard(t *testing.T) {
	disk := newDisk(t, meta.Values{})
	alive := 0
	kept, err := Run(plain{disk}, disk.Size(), Parts{State: true}, Options{UUID: uuids(), Alive: func() { alive++ }})
	if err != nil || len(kept) != 1 || kept[0] != State || alive < 3 {
		t.Errorf("kept %v, %v, alive %d times", kept, err, alive)
	}
	empty(t, State, content(disk.Bytes(), stateAt))
}

type plain struct{ *powercut.Disk }

func (plain) Discard(int64, int64) error { return errors.ErrUnsupported }

// META that is damaged does not keep a disk from being reset.
func TestDamagedMeta(t *testing.T) {
	disk := newDisk(t, meta.Values{})
	for _, at := range []int64{mib + 100, mib + meta.CopySize + 100} {
		if _, err := disk.WriteAt([]byte{1}, at); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := run(disk, Parts{}); !errors.Is(err, meta.ErrDamaged) {
		t.Errorf("got %v, want %v", err, meta.ErrDamaged)
	}
	if _, err := Run(disk, disk.Size(), Parts{Ephemeral: true}, Options{UUID: uuids()}); err != nil {
		t.Error(err)
	}
	empty(t, Ephemeral, content(disk.Bytes(), ephemeralAt))
}

func TestErrors(t *testing.T) {
	disk := newDisk(t, meta.Values{meta.ResetRequest: []byte("everything")})
	if _, err := run(disk, Parts{}); !errors.Is(err, ErrParts) ||
		err.Error() != `META 0xf2 (reset-request): invalid request to reset "everything": want ephemeral, state or all` {
		t.Error(err)
	}
	table, err := gpt.Read(disk, disk.Size())
	if err != nil {
		t.Fatal(err)
	}
	table.Partitions[2].Name = State
	if err := table.Store(disk); err != nil {
		t.Fatal(err)
	}
	before := disk.Operations()
	for label, want := range map[string]string{
		"ephemeral": "0 partitions have the label EPHEMERAL, want one; nothing is erased",
		"all":       "2 partitions have the label STATE, want one; nothing is erased",
	} {
		p, err := Parse(label)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Run(disk, disk.Size(), p, Options{UUID: uuids()}); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", label, err, want)
		}
	}
	if disk.Operations() != before {
		t.Error("something was written")
	}
}

func TestParse(t *testing.T) {
	for s, want := range map[string]string{
		"ephemeral": "ephemeral", " state\n": "state", "all": "all", "state,ephemeral": "all", "ephemeral\tall": "all", "state state": "state",
	} {
		if p, err := Parse(s); err != nil || p.String() != want {
			t.Errorf("%q: %q, %v, want %s", s, p, err, want)
		}
	}
	for s, want := range map[string]string{
		"":                       `""`,
		", ":                     `", "`,
		"State":                  `"State"`,
		"state,meta":             `"state,meta"`,
		strings.Repeat("x", 100): `"` + strings.Repeat("x", 40) + `…"`,
	} {
		want = "invalid request to reset " + want + ": want ephemeral, state or all"
		if p, err := Parse(s); !errors.Is(err, ErrParts) || err.Error() != want || p != (Parts{}) {
			t.Errorf("%q: %v, %v, want %s", s, p, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "all", "state, ephemeral", "\xff", "all x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := Parse(s)
		if (err == nil) != (p != Parts{}) {
			t.Fatalf("%v, %v", p, err)
		}
		if err != nil {
			return
		}
		if again, err := Parse(p.String()); err != nil || again != p {
			t.Errorf("%q is %v, and %q is %v, %v", s, p, p.String(), again, err)
		}
	})
}
