//go:build linux

package containers

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/kilnhq/kiln/machine/containers/static"
)

func spec(t *testing.T, c static.Container, config ocispec.ImageConfig, id identity) *specs.Spec {
	t.Helper()
	c.Name = "n"
	s, err := runtimeSpec(&c, config, id, []static.Mount{{Type: "bind", Source: "/run/resolv.conf", Target: "/etc/resolv.conf"}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mounted(s *specs.Spec, target string) specs.Mount {
	for _, m := range s.Mounts {
		if m.Destination == target {
			return m
		}
	}
	return specs.Mount{}
}

// What a container may do if nobody says anything.
func TestSpecDefaults(t *testing.T) {
	s := spec(t, static.Container{}, ocispec.ImageConfig{Entrypoint: []string{"/x"}, Cmd: []string{"-a"}, Env: []string{"A=1"}, WorkingDir: "/w"}, identity{home: "/root"})
	p := s.Process
	if !s.Root.Readonly || !p.NoNewPrivileges || p.Terminal || s.Linux.Seccomp == nil || s.Linux.Seccomp.DefaultAction != specs.ActErrno || s.Linux.CgroupsPath != "/containers/n" {
		t.Errorf("%+v, %+v", s.Root, p)
	}
	if !reflect.DeepEqual(p.Args, []string{"/x", "-a"}) || p.Cwd != "/w" || p.User.UID != 0 {
		t.Errorf("%+v", p)
	}
	if got := fmt.Sprint(p.Env); got != "[PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root A=1]" {
		t.Error(got)
	}
	if caps := p.Capabilities; len(caps.Bounding) != 14 || !reflect.DeepEqual(caps.Bounding, caps.Effective) || slices.Contains(caps.Bounding, "CAP_SYS_ADMIN") || caps.Ambient != nil {
		t.Errorf("%+v", caps)
	}
	if d := s.Linux.Resources.Devices; len(d) != 1 || d[0].Allow {
		t.Errorf("devices %+v", d)
	}
	if !slices.Contains(s.Linux.MaskedPaths, "/proc/kcore") || !slices.Contains(s.Linux.ReadonlyPaths, "/proc/sys") {
		t.Errorf("%+v", s.Linux)
	}
	var spaces []string
	for _, n := range s.Linux.Namespaces {
		spaces = append(spaces, string(n.Type))
	}
	if got := fmt.Sprint(spaces); got != "[pid ipc mount cgroup]" || s.Hostname != "" {
		t.Errorf("%s, %q", got, s.Hostname)
	}
	for target, want := range map[string]string{"/sys": "ro", "/sys/fs/cgroup": "ro", "/proc": "noexec", "/dev": "nosuid"} {
		if m := mounted(s, target); !slices.Contains(m.Options, want) {
			t.Errorf("%s: %+v, want %s", target, m, want)
		}
	}
	if mounted(s, "/etc/resolv.conf").Source != "/run/resolv.conf" {
		t.Errorf("%+v", s.Mounts)
	}
}

func TestSpec(t *testing.T) {
	image := ocispec.ImageConfig{Entrypoint: []string{"/x"}, Cmd: []string{"-a"}, Env: []string{"A=1"}}
	root := identity{}
	for name, c := range map[string]struct {
		container static.Container
		id        identity
		right     func(*specs.Spec) bool
	}{
		"args":     {static.Container{Args: []string{"-b"}}, root, func(s *specs.Spec) bool { return slices.Equal(s.Process.Args, []string{"/x", "-b"}) }},
		"command":  {static.Container{Command: []string{"/y"}}, root, func(s *specs.Spec) bool { return slices.Equal(s.Process.Args, []string{"/y"}) }},
		"both":     {static.Container{Command: []string{"/y"}, Args: []string{"z"}}, root, func(s *specs.Spec) bool { return slices.Equal(s.Process.Args, []string{"/y", "z"}) }},
		"env":      {static.Container{Env: []string{"A=2", "B="}}, root, func(s *specs.Spec) bool { return slices.Equal(s.Process.Env[1:], []string{"A=2", "B="}) }},
		"writable": {static.Container{WritableRoot: true}, root, func(s *specs.Spec) bool { return !s.Root.Readonly }},
		"user": {static.Container{}, identity{uid: 7, gid: 8, groups: []uint32{9}}, func(s *specs.Spec) bool {
			return s.Process.User.UID == 7 && s.Process.User.GID == 8 && len(s.Process.User.AdditionalGids) == 1 && len(s.Process.Capabilities.Effective) == 0
		}},
		"user with capabilities": {static.Container{Capabilities: []string{"CAP_NET_ADMIN"}}, identity{uid: 7}, func(s *specs.Spec) bool {
			return slices.Equal(s.Process.Capabilities.Ambient, []string{"CAP_NET_ADMIN"}) && slices.Contains(s.Process.Capabilities.Bounding, "CAP_NET_ADMIN")
		}},
		"capabilities": {static.Container{Capabilities: []string{"CAP_NET_ADMIN", "CAP_CHOWN"}}, root, func(s *specs.Spec) bool {
			return len(s.Process.Capabilities.Effective) == 15
		}},
		"all capabilities": {static.Container{Capabilities: []string{"ALL"}}, root, func(s *specs.Spec) bool {
			return len(s.Process.Capabilities.Bounding) == 41 && s.Linux.Seccomp != nil && s.Process.NoNewPrivileges
		}},
		"limits": {static.Container{Memory: 1 << 20, CPUs: 0.5, PIDs: 9}, root, func(s *specs.Spec) bool {
			r := s.Linux.Resources
			return *r.Memory.Limit == 1<<20 && *r.CPU.Quota == 50000 && *r.CPU.Period == 100000 && *r.Pids.Limit == 9
		}},
		"bridge": {static.Container{Network: static.NetworkBridge}, root, func(s *specs.Spec) bool {
			return s.Hostname == "n" && mounted(s, "/sys").Type == "sysfs" && slices.Contains(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace})
		}},
		"privileged": {static.Container{Privileged: true}, root, func(s *specs.Spec) bool {
			return !s.Process.NoNewPrivileges && s.Linux.Seccomp == nil && s.Linux.MaskedPaths == nil && s.Linux.ReadonlyPaths == nil && s.Linux.Resources.Devices[0].Allow &&
				mounted(s, "/dev").Source == "/dev" && mounted(s, "/dev/pts").Type == "" && slices.Contains(mounted(s, "/sys").Options, "rw") && s.Root.Readonly
		}},
		"extension": {static.Container{AllDevices: true, NoSeccomp: true, WritableSys: true, Propagation: "rshared", MaskedPaths: &[]string{}, ReadonlyPaths: &[]string{"/a"}}, root,
			func(s *specs.Spec) bool {
				return s.Linux.Resources.Devices[0].Allow && s.Linux.Seccomp == nil && len(s.Linux.MaskedPaths) == 0 && slices.Equal(s.Linux.ReadonlyPaths, []string{"/a"}) &&
					s.Linux.RootfsPropagation == "rshared" && slices.Contains(mounted(s, "/sys").Options, "rw") && mounted(s, "/dev").Type == "tmpfs"
			}},
		"mounts": {static.Container{Mounts: []static.Mount{{Type: "bind", Source: "/a", Target: "/b/c/d"}, {Type: "bind", Source: "/dev", Target: "/dev"}, {Type: "tmpfs", Target: "/b"}}}, root,
			func(s *specs.Spec) bool {
				at := func(target string) int {
					return slices.IndexFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == target })
				}
				return mounted(s, "/dev").Type == "bind" && at("/b") < at("/b/c/d") && at("/dev") < at("/dev/pts")
			}},
	} {
		t.Run(name, func(t *testing.T) {
			if s := spec(t, c.container, image, c.id); !c.right(s) {
				t.Errorf("process %+v\nroot %+v\nmounts %+v\nlinux %+v", s.Process, s.Root, s.Mounts, s.Linux)
			}
		})
	}
	if _, err := runtimeSpec(&static.Container{Name: "n"}, ocispec.ImageConfig{}, root, nil); err == nil || !strings.Contains(err.Error(), "want command") {
		t.Errorf("%v", err)
	}
}

func TestIdentify(t *testing.T) {
	root := fstest.MapFS{
		"etc/passwd": {Data: []byte("root:x:0:0::/root:/x\nweb:x:33:34::/srv:/x\nshort\nbad:x:y:1::/:\n")},
		"etc/group":  {Data: []byte("root:x:0:\nwww:x:50:web,other\nmore:x:51:other\n")},
	}
	opened := 0
	open := func() (fs.FS, func() error, error) {
		opened++
		return root, func() error { opened--; return nil }, nil
	}
	number := func(n uint32) *uint32 { return &n }
	for _, c := range []struct {
		container static.Container
		of        string
		want      identity
		err       string
	}{
		{static.Container{}, "", identity{home: "/root"}, ""},
		{static.Container{}, "0", identity{home: "/root"}, ""},
		{static.Container{}, "7:8", identity{uid: 7, gid: 8}, ""},
		{static.Container{}, "7", identity{uid: 7}, ""},
		{static.Container{}, "33", identity{uid: 33, gid: 34, home: "/srv"}, ""},
		{static.Container{}, "web", identity{uid: 33, gid: 34, home: "/srv", groups: []uint32{50}}, ""},
		{static.Container{}, "web:www", identity{uid: 33, gid: 50, home: "/srv"}, ""},
		{static.Container{}, "web:99", identity{uid: 33, gid: 99, home: "/srv"}, ""},
		{static.Container{}, "7:www", identity{uid: 7, gid: 50}, ""},
		{static.Container{}, "nobody", identity{}, `the image's user "nobody": etc/passwd has no such user`},
		{static.Container{}, "bad", identity{}, "no such user"},
		{static.Container{}, "web:none", identity{}, "etc/group has no such group"},
		{static.Container{User: number(5)}, "web", identity{uid: 5}, ""},
		{static.Container{User: number(5), Group: number(6)}, "web", identity{uid: 5, gid: 6}, ""},
		{static.Container{Group: number(6)}, "web", identity{uid: 33, gid: 6, home: "/srv", groups: []uint32{50}}, ""},
	} {
		got, err := identify(&c.container, c.of, open)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%q: %v, want %s", c.of, err, c.err)
			}
		} else if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%q: %+v, %v; want %+v", c.of, got, err, c.want)
		}
		if opened != 0 {
			t.Fatalf("%q: the root file system is left open", c.of)
		}
	}
	broken := errors.New("broken")
	if _, err := identify(&static.Container{}, "web", func() (fs.FS, func() error, error) { return nil, nil, broken }); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
}

func TestBridge(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"bridge": `echo '{"cniVersion":"1.0.0","ips":[]}'`, "portmap": `cat`,
	} {
		script := "#!/bin/sh\necho $CNI_COMMAND " + name + " $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME >>" + dir + "/calls\ncat >" + dir + "/" + name + ".in\n" +
			strings.ReplaceAll(text, "cat", "cat "+dir+"/portmap.in") + "\n"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	config := filepath.Join(dir, "net.conflist")
	if err := os.WriteFile(config, []byte(`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"},{"type":"portmap","capabilities":{"portMappings":true}}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	b := Bridge{Config: config, Plugins: []string{dir}, Dir: dir}
	var up []int
	b.Loopback = func(pid int) error { up = append(up, pid); return nil }
	c := &static.Container{Name: "web", Network: static.NetworkBridge, Ports: []static.Port{{Host: 80, Container: 8080, Protocol: "tcp"}}}
	if err := b.Attach(t.Context(), c, 12); err != nil {
		t.Fatal(err)
	}
	in, err := os.ReadFile(filepath.Join(dir, "portmap.in"))
	if want := `{"cniVersion":"1.0.0","name":"n","prevResult":{"cniVersion":"1.0.0","ips":[]},"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":8080,"protocol":"tcp"}]},"type":"portmap"}`; err != nil || string(in) != want {
		t.Errorf("%v, %s\nwant %s", err, in, want)
	}
	// A configuration without the port does not make that of the last time stay.
	if err := b.Detach(t.Context(), &static.Container{Name: "web"}); err != nil {
		t.Fatal(err)
	}
	if in, err = os.ReadFile(filepath.Join(dir, "portmap.in")); err != nil || !strings.Contains(string(in), `"hostPort":80`) {
		t.Errorf("%v, %s", err, in)
	}
	if err := b.Detach(t.Context(), &static.Container{Name: "web"}); err != nil { // there is nothing any more
		t.Fatal(err)
	}
	calls, err := os.ReadFile(filepath.Join(dir, "calls"))
	if !slices.Equal(up, []int{12}) {
		t.Errorf("the loopback interfaces of %v are up, want that of 12", up)
	}
	if want := `ADD bridge kiln-web /proc/12/ns/net eth0
ADD portmap kiln-web /proc/12/ns/net eth0
DEL portmap kiln-web eth0
DEL bridge kiln-web eth0
`; err != nil || string(calls) != want {
		t.Errorf("%v, %s", err, calls)
	}
	if err := os.WriteFile(filepath.Join(dir, "bridge"), []byte("#!/bin/sh\necho '{\"code\":7,\"msg\":\"no room\",\"details\":\"none\"}'\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := b.Attach(t.Context(), c, 12); err == nil || err.Error() != "CNI plugin bridge ADD: exit status 1: no room: none" {
		t.Errorf("%v", err)
	}
}
