package volume

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/machine/blockdev"
)

const userData = "version: v1alpha1\nhostname: node-1\n"

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(oracle.Tool(t, name), args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// files writes a seed into a directory.
func files(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"user-data": userData, "meta-data": "instance-id: i\n", "openstack/latest/user_data": "os", "empty": "",
	} {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// cd makes an ISO 9660 image with the options of mkisofs.
func cd(t *testing.T, label string, options ...string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "cd.iso")
	args := append([]string{"-as", "mkisofs", "-quiet", "-V", label, "-o", name}, options...)
	run(t, "xorriso", append(args, files(t))...)
	return name
}

// stick makes a FAT file system.
func stick(t *testing.T, label string, options ...string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "stick.img")
	run(t, "mkfs.vfat", append(append([]string{"-C", "-n", label}, options...), name, "40960")...)
	from, err := filepath.Glob(filepath.Join(files(t), "*"))
	if err != nil {
		t.Fatal(err)
	}
	run(t, "mcopy", append(append([]string{"-s", "-i", name}, from...), "::/")...)
	return name
}

func device(t *testing.T, name string) Device {
	t.Helper()
	fi, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return Device{Path: name, Size: fi.Size(), CD: true, Open: func() (File, error) { return os.Open(name) }}
}

func TestFind(t *testing.T) {
	noise := filepath.Join(t.TempDir(), "noise")
	if err := os.WriteFile(noise, bytes.Repeat([]byte("noise"), 100000), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, image, kind string }{
		{"Rock Ridge", cd(t, "cidata", "-R", "-J"), "iso9660"},
		{"capital letters", cd(t, "CIDATA", "-R"), "iso9660"},
		{"level 1", cd(t, "cidata", "--norock", "-iso-level", "1"), "iso9660"},
		{"level 3", cd(t, "cidata", "--norock", "-iso-level", "3"), "iso9660"},
		{"FAT12", stick(t, "CIDATA", "-F", "12"), "vfat"},
		{"FAT16", stick(t, "cidata", "-F", "16"), "vfat"},
		{"FAT32", stick(t, "cidata", "-F", "32", "-s", "1"), "vfat"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, err := Find([]Device{device(t, noise), device(t, c.image)}, "cidata")
			if err != nil {
				t.Fatal(err)
			}
			defer v.Close()
			if v.Device != c.image || v.Type != c.kind || !strings.EqualFold(v.Label, "cidata") {
				t.Errorf("found %+v", v)
			}
			for name, want := range map[string]string{"user-data": userData, "openstack/latest/user_data": "os", "empty": ""} {
				if got, err := v.ReadFile(name, 1000); err != nil || string(got) != want {
					t.Errorf("%s: %q, %v, want %q", name, got, err, want)
				}
			}
			for _, c := range []struct{ name, want string }{
				{"network-config", "file does not exist"},
				{"user-data/x", "file does not exist"},
				{"openstack", "not a regular file"},
				{"user-data", "the file has 35 bytes, want at most 10"},
			} {
				_, err := v.ReadFile(c.name, 10)
				if want := "read " + v.Device + ":" + c.name + ": " + c.want; err == nil || err.Error() != want {
					t.Errorf("error %v, want %s", err, want)
				}
			}
			if _, err := v.ReadFile("x", 10); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestNotFound(t *testing.T) {
	image := device(t, cd(t, "cidata", "-R"))
	_, err := Find([]Device{image}, "config-2", "context")
	if !errors.Is(err, ErrNotFound) || err.Error() != "no volume is labelled config-2 or context" {
		t.Errorf("error %v", err)
	}
	broken := Device{Path: "/dev/sr1", Size: 1 << 20, Open: func() (File, error) { return nil, errors.New("input/output error") }}
	_, err = Find([]Device{image, broken}, "config-2")
	if want := "no volume is labelled config-2; not all devices can be read: /dev/sr1: input/output error"; err == nil || err.Error() != want || !errors.Is(err, ErrNotFound) {
		t.Errorf("error %v, want %s", err, want)
	}
	if v, err := Find([]Device{broken, image}, "cidata"); err != nil {
		t.Error(err)
	} else {
		v.Close()
	}
}

func TestAmbiguous(t *testing.T) {
	a, b := device(t, cd(t, "cidata", "-R")), device(t, cd(t, "cidata", "-R"))
	_, err := Find([]Device{a, b}, "cidata")
	if want := "more than one volume is labelled cidata: " + a.Path + ", " + b.Path + "; detach all but one"; !errors.Is(err, ErrAmbiguous) || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	// The first partition of a hybrid image is the image again.
	b.Parent = a.Path
	v, err := Find([]Device{a, b}, "cidata")
	if err != nil {
		t.Fatal(err)
	}
	v.Close()
	if v.Device != a.Path {
		t.Errorf("found %s", v.Device)
	}
}

// TestDamaged is a volume whose label is there, and not much more.
func TestDamaged(t *testing.T) {
	name := cd(t, "cidata", "-R")
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	copy(data[16*2048+158:], "\xff\xff\xff\x7f\x7f\xff\xff\xff") // where the root directory is
	if err := os.WriteFile(name, data, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = Find([]Device{device(t, name)}, "cidata")
	if err == nil || !strings.HasPrefix(err.Error(), name+": ") || errors.Is(err, ErrNotFound) {
		t.Errorf("error %v, want one that names the device", err)
	}
}

// TestBounded is a volume whose tables are larger than is read.
func TestBounded(t *testing.T) {
	l := &limited{bytes.NewReader(make([]byte, 100)), 100, 50}
	if _, err := l.ReadAt(make([]byte, 50), 0); err != nil {
		t.Error(err)
	}
	if _, err := l.ReadAt(make([]byte, 1), 0); err == nil || err.Error() != "the volume has more than 134217728 bytes of tables and directories" {
		t.Errorf("error %v", err)
	}
	var _ io.ReaderAt = l
}

func TestFindFile(t *testing.T) {
	a, b := device(t, cd(t, "any", "-R")), device(t, stick(t, "any"))
	b.CD = false
	v, err := FindFile([]Device{b, a}, "user-data")
	if err != nil {
		t.Fatal(err)
	}
	v.Close()
	if v.Device != a.Path || v.Type != "iso9660" {
		t.Errorf("found %+v", v)
	}
	_, err = FindFile([]Device{b, a}, "ovf-env.xml")
	if !errors.Is(err, ErrNotFound) || err.Error() != "no volume on a CD has ovf-env.xml" {
		t.Errorf("error %v", err)
	}
}

// TestDevices lists the devices of a machine.
func TestDevices(t *testing.T) {
	list, err := Devices(blockdev.Local())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range list {
		if d.Path == "" || d.Size <= 0 {
			t.Errorf("found %+v", d)
		}
	}
}
