package disk

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/internal/oracle"
)

const (
	guidA = "3515a337-9106-4d12-949b-0fc5fa7e80b5"
	guidB = "872c9ec4-8216-4bc9-9ea2-aa52843ad6d5"
	partA = "11111111-2222-3333-4444-555555555555"
)

// image makes a disk image with sgdisk.
func image(t *testing.T, guid string, labels ...string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(8 << 20); err != nil {
		t.Fatal(err)
	}
	args := []string{"-U", guid}
	for i, l := range labels {
		args = append(args, "-n", fmt.Sprintf("%d:0:+256K", i+1), "-c", fmt.Sprintf("%d:%s", i+1, l))
	}
	args = append(args, "-u", "1:"+partA, path)
	if out, err := exec.Command(oracle.Tool(t, "sgdisk"), args...).CombinedOutput(); err != nil {
		t.Fatalf("sgdisk: %v: %s", err, out)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func labels() []string { return []string{"EFI", "BOOT", Meta, State, Ephemeral} }

// system lays out a sysfs and a /dev with the disks name=GUID, whose images
// have all labels. The kernel shows the given number of their partitions.
func system(t *testing.T, images map[string][]byte, shown int, disks ...string) (sys, dev string) {
	t.Helper()
	root := t.TempDir()
	sys, dev = filepath.Join(root, "sys"), filepath.Join(root, "dev")
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	link := func(dir, name string) {
		t.Helper()
		class := filepath.Join(sys, "class/block")
		if err := os.MkdirAll(class, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(dir, filepath.Join(class, name)); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(dev, "README"), "")
	for _, d := range disks {
		name, guid, _ := strings.Cut(d, "=")
		dir := filepath.Join(sys, "devices/pci/block", name)
		write(dir+"/uevent", "MAJOR=254\nDEVNAME="+name+"\nDEVTYPE=disk\n")
		write(dir+"/size", "16384\n")
		write(dir+"/queue/logical_block_size", "512\n")
		link(dir, name)
		write(filepath.Join(dev, name), string(images[guid]))
		for i, l := range labels()[:shown] {
			part := fmt.Sprintf("%s%d", name, i+1)
			write(dir+"/"+part+"/uevent", fmt.Sprintf("DEVNAME=%s\nDEVTYPE=partition\nPARTN=%d\nPARTNAME=%s\n", part, i+1, l))
			link(dir+"/"+part, part)
		}
	}
	return sys, dev
}

func TestSelect(t *testing.T) {
	images := map[string][]byte{guidA: image(t, guidA, labels()...), guidB: image(t, guidB, labels()...)}
	for _, c := range []struct {
		name       string
		disks      []string
		disk, part string
		want       string // a name, "" or what the error says
		wantErr    error
	}{
		{"none", nil, "", "", "", nil},
		{"the only one", []string{"vda=" + guidA}, "", "", "vda", nil},
		{"by GUID", []string{"vda=" + guidA, "vdb=" + guidB}, strings.ToUpper(guidB), "", "vdb", nil},
		{"by partition", []string{"vda=" + guidA}, "", strings.ToUpper(partA), "vda", nil},
		{"two", []string{"vda=" + guidA, "vdb=" + guidB}, "", "", "vda (" + guidA + "), vdb (" + guidB + "); name it with the kernel argument kiln.disk=GUID", ErrAmbiguous},
		{"copies", []string{"vda=" + guidA, "vdb=" + guidA}, guidA, "", "they are copies of each other", ErrAmbiguous},
		{"another", []string{"vda=" + guidA}, guidB, "", "kiln.disk=" + guidB + "; disks: vda (" + guidA + ")", ErrNotFound},
		{"absent", nil, "", partA, "no partitioned disk is there: is its driver in the image?", ErrNotFound},
	} {
		t.Run(c.name, func(t *testing.T) {
			sys, dev := system(t, images, 5, c.disks...)
			if len(c.disks) == 0 {
				if err := os.MkdirAll(filepath.Join(sys, "class/block"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			disks, err := List(sys, dev)
			if err != nil {
				t.Fatal(err)
			}
			d, err := Select(disks, c.disk, c.part)
			switch {
			case c.wantErr != nil:
				if !errors.Is(err, c.wantErr) || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got error %v, want %v: %s", err, c.wantErr, c.want)
				}
			case err != nil:
				t.Error(err)
			case c.want == "":
				if d != nil {
					t.Errorf("got %v, want none", d)
				}
			case d == nil || d.Name != c.want:
				t.Errorf("got %v, want %s", d, c.want)
			}
			if d == nil || err != nil {
				return
			}
			state, ephemeral, ok, err := d.Data()
			if err != nil || !ok || !d.Complete || state.Device != filepath.Join(dev, c.want+"4") || ephemeral.Name != c.want+"5" {
				t.Errorf("data on %v and %v, %v, %v", state, ephemeral, ok, err)
			}
		})
	}
}

func TestIncomplete(t *testing.T) {
	sys, dev := system(t, map[string][]byte{guidA: image(t, guidA, labels()...)}, 4, "sda="+guidA)
	disks, err := List(sys, dev)
	if err != nil || len(disks) != 1 || disks[0].Complete {
		t.Fatalf("got %v, %v", disks, err)
	}
	_, _, _, err = disks[0].Data()
	if want := "disk sda (" + guidA + ") has no partition labelled EPHEMERAL"; err == nil || err.Error() != want {
		t.Errorf("got error %v, want %s", err, want)
	}
	if d, err := Select(disks, "", ""); d != nil || err != nil {
		t.Errorf("got %v, %v: it is not installed", d, err)
	}
}
