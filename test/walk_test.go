//go:build linux

package test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/kilnhq/kiln/api/v1alpha1"
	"github.com/kilnhq/kiln/imager/base"
	"github.com/kilnhq/kiln/imager/vm"
	"github.com/kilnhq/kiln/internal/oracle"
)

// shellName matches the names of what reads commands from people.
var shellName = regexp.MustCompile(`^(([abdk]|da|ba|z|fi|tc|c|mk|ya|pd|rba)?sh|busybox|toybox|python[0-9.]*|perl[0-9.]*|lua[0-9.]*|awk|gawk|mawk|expect|tclsh|nc|ncat|socat|sshd|dropbear|login|getty|agetty|su|sudo)$`)

// shellText is in the programs of the most common ones, whatever their names.
var shellText = [][]byte{[]byte("BusyBox v"), []byte("GNU bash, version"), []byte("toybox 0."), []byte("OpenSSH_")}

// The root file system of the base has no shell, no scripts, nothing that gives
// rights to who starts it, and nothing that everybody may write to but /tmp.
func TestWalkImage(t *testing.T) {
	oracle.Root(t) // owners and capabilities are only unpacked for root
	b, err := base.Open(oracle.Artifact(t, "KILN_BASE_CONTAINERS"), "amd64")
	if err != nil {
		t.Fatal(err)
	}
	part, err := b.Part(base.RootFS)
	if err != nil {
		t.Fatal(err)
	}
	file := save(t, "rootfs.sqsh", contents(t, part.Content))
	if out := run(t, oracle.Tool(t, "unsquashfs"), "-s", file); !strings.Contains(out, "Xattrs are not stored") {
		t.Errorf("files have attributes, capabilities among them perhaps:\n%s", out)
	}
	dir := filepath.Join(t.TempDir(), "root")
	run(t, oracle.Tool(t, "unsquashfs"), "-no-progress", "-d", dir, file)
	files := 0
	err = filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		inside := strings.TrimPrefix(name, dir)
		if fi.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
			t.Errorf("%s: %v", inside, fi.Mode())
		}
		if fi.Mode()&fs.ModeSymlink == 0 && fi.Mode().Perm()&0o002 != 0 && inside != "/tmp" {
			t.Errorf("%s: %v, which everybody may write to", inside, fi.Mode())
		}
		if shellName.MatchString(path.Base(inside)) {
			t.Errorf("%s: a shell, or as good as one", inside)
		}
		if fi.Mode().IsRegular() {
			files++
			isProgram(t, inside, read(t, name), fi.Mode())
		}
		return nil
	})
	if err != nil || files < 500 {
		t.Errorf("%d files, %v", files, err)
	}
}

// isProgram judges a file by what is in it.
func isProgram(t *testing.T, name string, data []byte, mode fs.FileMode) {
	t.Helper()
	if bytes.HasPrefix(data, []byte("#!")) {
		t.Errorf("%s is a script", name)
	}
	if !bytes.HasPrefix(data, []byte(elf.ELFMAG)) {
		if mode&0o111 != 0 {
			t.Errorf("%s may be started and is no program", name)
		}
		return
	}
	for _, text := range shellText {
		if bytes.Contains(data, text) {
			t.Errorf("%s has %q in it", name, text)
		}
	}
}

// A node in which everything runs that can is walked through its API.
func TestWalk(t *testing.T) {
	t.Parallel()
	disk, admin, dir := configured(t, oracle.Artifact(t, "KILN_BASE_CONTAINERS"))
	ctx, m := startWithin(t, 4*patience, vm.Config{Image: disk, Firmware: vm.BIOS, Forward: map[int]int{admin.port(t): 50000}, Memory: 1536})
	ready(t, ctx, m)
	t.Run("strangers", func(t *testing.T) { refusesStrangers(t, admin, dir) })
	t.Run("listens", func(t *testing.T) { listensOnly(t, admin, false) })
	t.Run("server", func(t *testing.T) { unprivileged(t, admin) })
	t.Run("verbs", func(t *testing.T) { verbsAnswer(t, admin, dir) })
	t.Run("reader", func(t *testing.T) { readerReads(t, admin, dir) })
	t.Run("mounts", func(t *testing.T) { walkMounts(t, admin) })
	shutdown(t, ctx, m)
}

// refusesStrangers calls every verb that there is.
func refusesStrangers(t *testing.T, admin remote, dir string) {
	another := remote{contexts: filepath.Join(t.TempDir(), "client.yaml")}
	run(t, admin.kiln, "config", "generate", "--hostname", "node1", "--address", "127.0.0.1", "--output", filepath.Dir(another.contexts))
	reader := remote{contexts: filepath.Join(t.TempDir(), "reader.yaml")}
	run(t, admin.kiln, "config", "client", "--ca", filepath.Join(dir, "ca.pem"), "--role", "reader", "--address", "127.0.0.1", "--output", reader.contexts)
	own := admin.context(t)
	foreign := another.context(t)
	foreign.CA = own.CA

	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(own.CA)) {
		t.Fatal("the context has no CA")
	}
	nobody, err := grpc.NewClient("passthrough:///"+admin.endpoint, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: "127.0.0.1"})))
	if err != nil {
		t.Fatal(err)
	}
	defer nobody.Close()
	for name, c := range map[string]struct {
		conn *grpc.ClientConn
		want string
	}{
		"no certificate": {nobody, "certificate required"},
		"another CA":     {connect(t, admin.endpoint, foreign), "unknown certificate authority"},
		"a reader":       {connect(t, admin.endpoint, reader.context(t)), "has the role kiln:reader, want kiln:"},
	} {
		n := 0
		for _, method := range methods(t) {
			if name == "a reader" && slices.Contains(forReaders(), string(method.Name())) {
				continue
			}
			n++
			if err := call(t.Context(), c.conn, method); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s at %s: %v, want %s", name, method.Name(), err, c.want)
			}
		}
		if n < 10 {
			t.Errorf("%s: %d verbs", name, n)
		}
	}
	if v, err := v1alpha1.NewNodeClient(connect(t, admin.endpoint, reader.context(t))).Version(t.Context(), &v1alpha1.VersionRequest{}); err != nil || v.GetHostname() != "node1" {
		t.Errorf("%v, %v", v, err)
	}
}

// forReaders are the verbs that a reader may call; all others, with those that are
// yet to come, are refused.
func forReaders() []string {
	return []string{"Version", "Health", "Services", "Logs", "Dmesg", "Events", "Processes", "Containers", "Images", "Stats", "Memory", "Mounts",
		"Disks", "Modules", "Extensions", "Hardening", "ConfigGet", "MetaList", "ReadFile", "ListDirectory"}
}

func methods(t *testing.T) []protoreflect.MethodDescriptor {
	t.Helper()
	s := v1alpha1.File_kiln_v1alpha1_node_proto.Services().ByName("Node")
	var all []protoreflect.MethodDescriptor
	for i := range s.Methods().Len() {
		all = append(all, s.Methods().Get(i))
	}
	return all
}

// call calls a method with an empty request, and wants an answer of one message.
func call(ctx context.Context, conn *grpc.ClientConn, m protoreflect.MethodDescriptor) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	name := fmt.Sprintf("/%s/%s", m.Parent().FullName(), m.Name())
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, name)
	if err != nil {
		return err
	}
	if err := s.SendMsg(dynamicpb.NewMessage(m.Input())); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	return s.RecvMsg(dynamicpb.NewMessage(m.Output()))
}

// listensOnly wants nothing but the API to listen, and, with a kubelet, what only
// programs on the node reach.
func listensOnly(t *testing.T, admin remote, kubelet bool) {
	t.Helper()
	table := func(name string) [][]string {
		var rows [][]string
		for line := range strings.Lines(admin.run(t, "read", "/proc/1/net/"+name)) {
			rows = append(rows, strings.Fields(line))
		}
		return rows[1:]
	}
	const listening = "0A"
	api := 0
	for _, name := range []string{"tcp", "tcp6"} {
		for _, f := range table(name) {
			switch local := f[1]; {
			case f[3] != listening:
			case strings.HasSuffix(local, ":C350"): // 50000
				api++
			case kubelet && name == "tcp" && strings.HasPrefix(local, "0100007F:"):
			default:
				t.Errorf("%s: something listens on %s", name, local)
			}
		}
	}
	if api != 1 {
		t.Errorf("%d sockets listen on port 50000, want one", api)
	}
	// Of UDP there are the clients of DHCP, and questions to name and time servers,
	// which are connected: they get nothing from anybody else.
	for name, clients := range map[string][]string{"udp": {"0044"}, "udp6": {"0222"}} {
		for _, f := range table(name) {
			port := f[1][strings.LastIndexByte(f[1], ':')+1:]
			connected := strings.Trim(f[2], "0:") != ""
			if !connected && !slices.Contains(clients, port) {
				t.Errorf("%s: a socket on %s takes what comes", name, f[1])
			}
		}
	}
	for _, f := range table("raw") {
		t.Errorf("raw: %v", f)
	}
	for _, f := range table("raw6") { // 58 is ICMPv6: router advertisements
		if !strings.HasSuffix(f[1], ":003A") {
			t.Errorf("raw6: %v", f)
		}
	}
	// Flag 00010000 is listening.
	for _, f := range table("unix") {
		if f[3] != "00010000" {
			continue
		}
		name := "without a name"
		if len(f) > 7 {
			name = f[7]
		}
		if !strings.HasPrefix(name, "/run/kiln/") && !strings.HasPrefix(name, "/run/containerd/") && !(kubelet && strings.HasPrefix(name, "/var/lib/kubelet/")) {
			t.Errorf("unix: something listens on %s", name)
		}
	}
}

// unprivileged looks at the API's server.
func unprivileged(t *testing.T, admin remote) {
	var nodes []struct {
		Processes []struct {
			PID     int
			Command string
		}
	}
	admin.json(t, &nodes, "ps")
	found := 0
	for _, p := range nodes[0].Processes {
		if !strings.HasPrefix(p.Command, "/usr/bin/apid ") {
			continue
		}
		found++
		rights := strings.Split(admin.run(t, "read", fmt.Sprintf("/proc/%d/status", p.PID)), "\n")
		for _, want := range []string{"Uid:\t50\t50\t50\t50", "Gid:\t50\t50\t50\t50", "NoNewPrivs:\t1", "CapInh:\t0000000000000000", "CapPrm:\t0000000000000000",
			"CapEff:\t0000000000000000", "CapAmb:\t0000000000000000"} {
			if !slices.Contains(rights, want) {
				t.Errorf("apid runs without %q:\n%s", want, strings.Join(rights, "\n"))
			}
		}
		for _, r := range rights {
			if groups, ok := strings.CutPrefix(r, "Groups:"); ok && strings.TrimSpace(groups) != "" {
				t.Errorf("apid is in the groups %s", groups)
			}
		}
	}
	if found != 1 {
		t.Errorf("%d processes of apid in %+v", found, nodes)
	}
	if out := admin.run(t, "logs", "apid"); !regexp.MustCompile(`msg="files and network are restricted" landlock=[1-9]`).MatchString(out) {
		t.Errorf("apid is not restricted:\n%s", out)
	}
}

// kernelTypes are file systems that the kernel makes up: what is written there
// changes settings, and stays nowhere.
func kernelTypes() []string {
	return []string{"proc", "sysfs", "cgroup2", "devpts", "mqueue", "securityfs", "bpf", "efivarfs", "debugfs", "tracefs", "configfs"}
}

// walkMounts looks at everything that is mounted, and at what is on it.
func walkMounts(t *testing.T, admin remote) {
	node := admin.dial(t)
	mounts, err := node.Mounts(t.Context(), &v1alpha1.MountsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var root bool
	files := 0
	for _, m := range mounts.GetMounts() {
		options := strings.Split(m.GetOptions(), ",")
		switch target := m.GetTarget(); {
		case slices.Contains(kernelTypes(), m.GetType()):
			continue
		case slices.Contains(options, "ro"):
			root = root || target == "/"
		case m.GetType() == "tmpfs" || m.GetType() == "devtmpfs":
		case m.GetType() == "ext4" && (target == "/system/state" || target == "/var" || strings.HasPrefix(target, "/var/")):
		default:
			t.Errorf("%s, of type %s, can be written to: %s", target, m.GetType(), m.GetOptions())
		}
		files += walk(t, node, m.GetTarget(), m.GetType() == "devtmpfs")
	}
	if !root {
		t.Errorf("the root is not read-only: %v", mounts)
	}
	for line := range strings.Lines(admin.run(t, "read", "/proc/1/mounts")) {
		if f := strings.Fields(line); f[2] == "overlay" && strings.Contains(f[3], "upperdir=") {
			t.Errorf("a layer can be written to: %s", line)
		}
	}
	if files < 700 {
		t.Errorf("%d files and directories, want 700 and more", files)
	}
	t.Logf("%d files and directories on %d mounts", files, len(mounts.GetMounts()))
}

// walk looks at all that is on a file system.
func walk(t *testing.T, node v1alpha1.NodeClient, dir string, devices bool) (files int) {
	t.Helper()
	s, err := node.ListDirectory(t.Context(), &v1alpha1.ListDirectoryRequest{Path: dir, Recursive: true})
	if err != nil {
		t.Fatal(err)
	}
	for {
		i, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return files
		}
		if status.Code(err) == codes.InvalidArgument { // a file that is mounted over another
			return files
		}
		if err != nil {
			t.Fatalf("%s: %v", dir, err)
		}
		files++
		const (
			kinds, link, device, directory = 0o170000, 0o120000, 0o020000, 0o040000
			special, sticky, others        = 0o6000, 0o1000, 0o002
		)
		mode := i.GetMode()
		kind := mode & kinds
		if mode&special != 0 {
			t.Errorf("%s: mode %o", i.GetPath(), mode)
		}
		switch {
		case mode&others == 0 || kind == link:
		case kind == directory && mode&sticky != 0: // /tmp and the like, which are memory
			if !slices.Contains([]string{"/tmp", "/dev/shm", "/dev/mqueue"}, i.GetPath()) {
				t.Errorf("%s: mode %o, which everybody may write to", i.GetPath(), mode)
			}
		case kind == device && devices && slices.Contains([]string{"null", "zero", "full", "random", "urandom", "tty", "ptmx", "tun", "fuse", "vfio", "vsock", "vhost-vsock"}, path.Base(i.GetPath())):
		default:
			t.Errorf("%s: mode %o, which everybody may write to", i.GetPath(), mode)
		}
		if shellName.MatchString(path.Base(i.GetPath())) {
			t.Errorf("%s: a shell, or as good as one", i.GetPath())
		}
	}
}

// The pattern finds shells, and nothing that the base needs.
func TestShellName(t *testing.T) {
	for _, name := range []string{"sh", "bash", "ash", "dash", "zsh", "busybox", "python3.12", "sshd", "nc"} {
		if !shellName.MatchString(name) {
			t.Errorf("%s is none", name)
		}
	}
	for _, name := range []string{"init", "apid", "runc", "containerd", "mke2fs", "iptables", "ash.ko"} {
		if shellName.MatchString(name) {
			t.Errorf("%s is one", name)
		}
	}
}
