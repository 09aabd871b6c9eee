//go:build linux

package test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// verbsAnswer asks a node for all that can be asked without ending it, and wants
// what it says to be true.
func verbsAnswer(t *testing.T, admin remote, dir string) {
	for _, c := range []struct {
		args string
		want []string
	}{
		{"version", []string{"node1", "metal", "normal"}},
		{"health", []string{"service apid", "service containerd", "modules"}},
		{"services", []string{"apid", "containerd", "running"}},
		{"dmesg", []string{"Linux version ", "Command line: "}},
		{"dmesg --tail 1", []string{"["}},
		{"events", []string{"stage ready"}},
		{"ps", []string{"/usr/bin/containerd", "/usr/bin/apid"}},
		{"ps --kernel", []string{"[kthreadd]"}},
		{"stats", []string{"load", "processors", "network eth0", "disk vda"}},
		{"memory", []string{"TOTAL"}},
		{"mounts", []string{"/system/state", "/var", "squashfs"}},
		{"disks", []string{"/dev/vda", "disk"}},
		{"logs containerd", []string{"containerd successfully booted"}},
		{"logs apid --tail 1 --times", []string{"T"}},
		{"ls /etc/ssl/certs", []string{"/etc/ssl/certs/"}},
		{"read /etc/os-release", []string{"ID=kiln"}},
		{"config get", []string{"kind: API"}},
		{"meta set user-1=Bob", nil},
		{"meta get user-1", []string{"Bob"}},
		{"meta delete user-1", nil},
		{"config apply --dry-run " + filepath.Join(dir, "machine.yaml"), []string{"nothing was changed"}},
	} {
		out := admin.run(t, strings.Fields(c.args)...)
		for _, w := range c.want {
			if !strings.Contains(out, w) {
				t.Errorf("kiln node %s: %s\nwant %q in it", c.args, out, w)
			}
		}
	}
	admin.refused(t, []string{"meta", "get", "user-1"}, "there is no value of 0x0c")
	admin.refused(t, []string{"rollback"}, "the slot has no system")
	admin.refused(t, []string{"service", "stop", "apid"}, "restart it instead")
	admin.refused(t, []string{"service", "stop", "nothing"}, "nothing")
	admin.refused(t, []string{"read", "/proc/1/environ"}, "permission denied")
	admin.refused(t, []string{"read", "/dev/vda"}, "a device, want a regular file")
	for _, verb := range []string{"version", "health", "services", "ps", "stats", "memory", "mounts", "disks", "modules", "extensions", "config get", "meta list"} {
		var docs []map[string]any
		admin.json(t, &docs, strings.Fields(verb)...)
		if len(docs) != 1 || docs[0]["node"] != "127.0.0.1" || docs[0]["error"] != nil {
			t.Errorf("kiln node %s: %v", verb, docs)
		}
	}
	stopsAndStarts(t, admin)
	follows(t, admin)
	collects(t, admin)
}

// readerReads wants the API's server itself to read what everybody may, and nothing
// else.
func readerReads(t *testing.T, admin remote, dir string) {
	reader := admin
	reader.contexts = filepath.Join(t.TempDir(), "reader.yaml")
	run(t, reader.kiln, "config", "client", "--ca", filepath.Join(dir, "ca.pem"), "--role", "reader", "--address", "127.0.0.1", "--output", reader.contexts)
	if out := reader.run(t, "read", "/etc/hostname"); out != "node1\n" {
		t.Errorf("/etc/hostname: %q", out)
	}
	if out := reader.run(t, "ls", "/usr/bin"); !strings.Contains(out, "/usr/bin/apid") {
		t.Errorf("/usr/bin: %s", out)
	}
	if out := reader.run(t, "config", "get"); strings.Contains(out, "PRIVATE KEY") || !strings.Contains(out, "kind: API") {
		t.Errorf("the configuration, for a reader:\n%s", out)
	}
	reader.refused(t, []string{"read", "/system/state/config.yaml"}, "takes the role kiln:admin")
	reader.refused(t, []string{"read", "/proc/1/mem"}, "permission denied")
}

// stopsAndStarts wants a service to do what it is told.
func stopsAndStarts(t *testing.T, admin remote) {
	t.Helper()
	is := func(state string) (pid int) {
		t.Helper()
		for deadline := time.Now().Add(patience); ; time.Sleep(time.Second) {
			var docs []struct {
				Services []struct {
					Name, State string
					PID         int
				}
			}
			admin.json(t, &docs, "services")
			for _, s := range docs[0].Services {
				if s.Name == "containerd" && s.State == state {
					return s.PID
				}
			}
			if time.Now().After(deadline) {
				t.Fatalf("containerd does not become %s: %+v", state, docs)
			}
		}
	}
	first := is("running")
	admin.run(t, "service", "restart", "containerd")
	if second := is("running"); second == first {
		t.Errorf("containerd has the process %d still", first)
	}
	admin.run(t, "service", "stop", "containerd")
	is("stopped")
	admin.run(t, "service", "start", "containerd")
	is("running")
}

// follows wants what comes after it was asked for.
func follows(t *testing.T, admin remote) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	all := admin.command("events", "--follow", "--tail", "0")
	c := exec.CommandContext(ctx, all.Path, all.Args[1:]...)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Wait()
	defer cancel()
	go func() {
		// Whoever follows may not be there at first.
		for ctx.Err() == nil {
			_ = admin.command("service", "restart", "containerd").Run()
			time.Sleep(5 * time.Second)
		}
	}()
	var seen []byte
	for buf := make([]byte, 4096); !bytes.Contains(seen, []byte("service containerd")); {
		n, err := out.Read(buf)
		seen = append(seen, buf[:n]...)
		if err != nil {
			t.Fatalf("%s, %v", seen, err)
		}
	}
}

// collects wants everything in the support bundle but what there is not.
func collects(t *testing.T, admin remote) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "support.tar.gz")
	admin.run(t, "support", "--file", file)
	z, err := gzip.NewReader(bytes.NewReader(read(t, file)))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, strings.TrimPrefix(h.Name, "support/127.0.0.1/"))
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(data), "PRIVATE KEY") {
			t.Errorf("%s has a key in it", h.Name)
		}
		if h.Name == "support/127.0.0.1/errors.txt" {
			t.Logf("what could not be had:\n%s", data)
		}
	}
	for _, want := range []string{"version.json", "health.json", "dmesg.txt", "logs/apid.txt", "logs/containerd.txt", "mounts.json"} {
		if !slices.Contains(names, want) {
			t.Errorf("no %s in %v", want, names)
		}
	}
}
