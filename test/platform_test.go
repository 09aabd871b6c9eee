//go:build linux

package test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/kilnhq/kiln/imager/vm"
	"github.com/kilnhq/kiln/internal/oracle"
)

// relayVariable makes the test program connect its standard input and output to an
// address of this machine: how a machine's network, which leads nowhere else,
// reaches a server of a test.
const relayVariable = "KILN_TEST_RELAY"

// relay does that, and returns whether it was asked to.
func relay() bool {
	if len(os.Args) != 3 || os.Args[1] != relayVariable {
		return false
	}
	c, err := net.Dial("tcp", os.Args[2])
	if err != nil {
		return true
	}
	go func() {
		_, _ = io.Copy(c, os.Stdin)
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(os.Stdout, c)
	return true
}

// A fakeService is an HTTP server that a machine reaches.
type fakeService struct {
	mu       sync.Mutex
	requests []string // method and URI
	answer   http.HandlerFunc
	address  string
}

func newService(t *testing.T, answer http.HandlerFunc) *fakeService {
	t.Helper()
	s := &fakeService{answer: answer}
	server := httptest.NewServer(s)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	s.address = server.Listener.Addr().String()
	return s
}

func (s *fakeService) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, r.Method+" "+r.URL.RequestURI())
	answer := s.answer
	s.mu.Unlock()
	answer(w, r)
}

func (s *fakeService) become(answer http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

func (s *fakeService) asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.requests...)
}

// at is a machine's vm.Config.Serve for one address.
func (s *fakeService) at(t *testing.T, address string) map[string]string {
	t.Helper()
	return relayed(t, address, s.address)
}

// relayed is a vm.Config.Serve that leads from an address of the machine's network
// to one of ours.
func relayed(t *testing.T, address, to string) map[string]string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{address: fmt.Sprintf("'%s' %s %s", self, relayVariable, to)}
}

// An enrolment is a machine configuration, and the client that it lets in.
type enrolment struct {
	machine []byte
	file    string
	admin   remote
}

// enrol makes a configuration of a node that is called name and is reached at a
// port of this machine.
func enrol(t *testing.T, name string, port int) enrolment {
	t.Helper()
	dir := t.TempDir()
	kiln := oracle.Artifact(t, "KILN_BIN")
	run(t, kiln, "config", "generate", "--hostname", name, "--address", "127.0.0.1", "--output", dir)
	file := filepath.Join(dir, "machine.yaml")
	return enrolment{read(t, file), file, remote{kiln: kiln, endpoint: fmt.Sprintf("127.0.0.1:%d", port), contexts: filepath.Join(dir, "client.yaml")}}
}

// with is the configuration with further documents.
func (e enrolment) with(documents ...string) []byte {
	return []byte(string(e.machine) + "\n---\n" + strings.Join(documents, "\n---\n"))
}

// configuredFrom waits until a node has its configuration, and wants it to be from
// that source and the node to be who it says.
func configuredFrom(t *testing.T, ctx context.Context, m *vm.Machine, e enrolment, name, source string) {
	t.Helper()
	if _, err := m.Wait(ctx, regexp.MustCompile(`(^|\] )kiln: stage=config \S+ from="?`+regexp.QuoteMeta(source)+`"? digest=`)); err != nil {
		t.Fatal(err)
	}
	settled(t, ctx, m)
	if out := e.admin.run(t, "version"); !strings.Contains(out, name) || !strings.Contains(out, "normal") {
		t.Errorf("version: %s\nwant %s", out, name)
	}
	if out := e.admin.run(t, "config", "get"); !strings.Contains(out, "hostname: "+name+"\n") {
		t.Errorf("config get: %s\nwant hostname %s", out, name)
	}
	if c := e.admin.check(t, "config"); !c.Passed || c.Message != "" {
		t.Errorf("health of the configuration: %+v", c)
	}
}

// settled waits until a node is up and knows its clients, whichever comes first.
func settled(t *testing.T, ctx context.Context, m *vm.Machine) (up milestone) {
	t.Helper()
	for missing := []*regexp.Regexp{readyLine, mutualLine}; len(missing) > 0; {
		line, err := m.Wait(ctx, missing...)
		if err != nil {
			t.Fatal(err)
		}
		if readyLine.MatchString(line) {
			if up, _, err = parseMilestone(line); err != nil {
				t.Fatal(err)
			}
		}
		missing = slices.DeleteFunc(missing, func(re *regexp.Regexp) bool { return re.MatchString(line) })
	}
	return up
}

// A check is a part of a node's health.
type check struct {
	Name    string
	Passed  bool
	Message string
}

func (r remote) check(t *testing.T, name string) check {
	t.Helper()
	var health []struct{ Checks []check }
	out, err := r.command("health", "--output", "json").Output() // fails if a check does
	if err := json.Unmarshal(out, &health); err != nil || len(health) != 1 {
		t.Fatalf("health: %v\n%s", err, out)
	}
	for _, c := range health[0].Checks {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("health has no %s: %+v, %v", name, health, err)
	return check{}
}

// volumeOf makes a volume of files: an ISO 9660 image.
func volumeOf(t *testing.T, label string, files map[string][]byte) string {
	t.Helper()
	dir, name := t.TempDir(), filepath.Join(t.TempDir(), "volume.iso")
	for file, data := range files {
		if err := os.WriteFile(filepath.Join(dir, file), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run(t, oracle.Tool(t, "xorriso"), "-as", "mkisofs", "-quiet", "-R", "-J", "-V", label, "-o", name, dir)
	return name
}

// onDisk is a machine that starts the kernel directly, with these arguments, and
// has a disk.
func onDisk(t *testing.T, disk, cmdline string, port int) vm.Config {
	t.Helper()
	c := kernelOf(t, cmdline)
	c.Disks, c.Forward = []string{disk}, map[int]int{port: 50000}
	return c
}

// A node is what a seed of cloud-init's NoCloud says, on a volume. It keeps that:
// the next start asks nobody else.
func TestPlatformVolume(t *testing.T) {
	t.Parallel()
	disk, port := copySparse(t, oracle.Artifact(t, "KILN_IMAGE")), freePort(t)
	e := enrol(t, "seeded", port)
	c := onDisk(t, disk, "kiln.platform=nocloud", port)
	c.Disks = append(c.Disks, volumeOf(t, "cidata", map[string][]byte{"user-data": e.machine, "meta-data": []byte("instance-id: i-1\n")}))
	ctx, m := startWithin(t, 2*patience, c)
	configuredFrom(t, ctx, m, e, "seeded", "nocloud volume")
	shutdown(t, ctx, m)
	m.Stop()

	other := newService(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "other") })
	c.Cmdline += " kiln.config=http://10.0.2.100/node.yaml"
	c.Disks, c.Serve = c.Disks[:1], other.at(t, "10.0.2.100:80")
	ctx, m = startWithin(t, 2*patience, c)
	configuredFrom(t, ctx, m, e, "seeded", "STATE")
	shutdown(t, ctx, m)
	if asked := other.asked(); len(asked) > 0 || maintenanceLine.MatchString(m.Console()) {
		t.Errorf("the second start asked %v, or was in maintenance mode", asked)
	}
}

// Other sources of a configuration, each with a node that has none.
func TestPlatforms(t *testing.T) {
	full(t)
	const serial = "00-5E1A1"
	for _, tt := range []struct {
		name, cmdline, source string
		prepare               func(t *testing.T, c *vm.Config, e enrolment) (asked func() []string)
		asked                 []string
	}{
		{
			"URL", "kiln.platform=metal kiln.config=http://10.0.2.100/${serial}/node.yaml?mac=${mac}", "kiln.config",
			func(t *testing.T, c *vm.Config, e enrolment) func() []string {
				s := newService(t, http.NotFound) // the server has not heard of the machine yet
				var times int
				s.become(func(w http.ResponseWriter, r *http.Request) {
					if times++; times < 3 {
						http.NotFound(w, r)
						return
					}
					_, _ = w.Write(e.machine)
				})
				c.Serve, c.More = s.at(t, "10.0.2.100:80"), []string{"-smbios", "type=1,serial=" + serial}
				return s.asked
			},
			[]string{"GET /00-5E1A1/node.yaml?mac=52%3A54%3A00%3A12%3A34%3A56"},
		},
		{
			"SMBIOS", "kiln.platform=nocloud", "nocloud",
			func(t *testing.T, c *vm.Config, e enrolment) func() []string {
				s := newService(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(e.machine) })
				c.Serve, c.More = s.at(t, "10.0.2.100:80"), []string{"-smbios", "type=1,serial=ds=nocloud;s=http://10.0.2.100/seed/"}
				return s.asked
			},
			[]string{"GET /seed/user-data"},
		},
		{
			"AWS", "kiln.platform=aws", "aws",
			func(t *testing.T, c *vm.Config, e enrolment) func() []string {
				s := newService(t, func(w http.ResponseWriter, r *http.Request) {
					switch r.Method + " " + r.URL.Path {
					case "PUT /latest/api/token":
						fmt.Fprint(w, "secret-token")
					case "GET /latest/user-data":
						if r.Header.Get("X-aws-ec2-metadata-token") != "secret-token" {
							w.WriteHeader(http.StatusUnauthorized)
							return
						}
						_, _ = w.Write(e.machine)
					default:
						http.NotFound(w, r)
					}
				})
				c.Network, c.Serve = "169.254.169.0/24", s.at(t, "169.254.169.254:80")
				return s.asked
			},
			[]string{"PUT /latest/api/token", "GET /latest/user-data"},
		},
		{
			"metal-iso", "kiln.platform=metal kiln.config=metal-iso", "kiln.config",
			func(t *testing.T, c *vm.Config, e enrolment) func() []string {
				c.Disks = append(c.Disks, volumeOf(t, "metal-iso", map[string][]byte{"config.yaml": e.machine}))
				return nil
			},
			nil,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			disk, port := copySparse(t, oracle.Artifact(t, "KILN_IMAGE")), freePort(t)
			e := enrol(t, "node7", port)
			c := onDisk(t, disk, tt.cmdline, port)
			asked := tt.prepare(t, &c, e)
			ctx, m := startWithin(t, 2*patience, c)
			configuredFrom(t, ctx, m, e, "node7", tt.source)
			shutdown(t, ctx, m)
			holdsConfig(t, disk, 512, string(e.machine))
			if asked != nil {
				got := strings.Join(asked(), "\n")
				for _, want := range tt.asked {
					if !strings.Contains(got, want) {
						t.Errorf("asked:\n%s\nwant %s", got, want)
					}
				}
			}
		})
	}
}

// A configuration that was built into the image is the node's, and with
// kiln.config=none it has none, whoever offers one.
func TestPlatformImageAndNone(t *testing.T) {
	full(t)
	port := freePort(t)
	e := enrol(t, "baked", port)
	image := filepath.Join(t.TempDir(), "baked.raw")
	run(t, oracle.Artifact(t, "KILN_BIN"), "build", "metal", "--base", oracle.Artifact(t, "KILN_BASE"), "--cache", t.TempDir(), "--config", e.file, "--output", image)
	ctx, m := startWithin(t, 2*patience, vm.Config{Image: image, Firmware: vm.BIOS, Forward: map[int]int{port: 50000}})
	if up := settled(t, ctx, m); up.fields["config"] != "state" {
		t.Errorf("ready with config=%s, want state", up.fields["config"])
	}
	if out := e.admin.run(t, "version"); !strings.Contains(out, "baked") {
		t.Errorf("version: %s", out)
	}
	shutdown(t, ctx, m)
	m.Stop()

	c := onDisk(t, copySparse(t, oracle.Artifact(t, "KILN_IMAGE")), "kiln.platform=nocloud kiln.config=none", port)
	c.Disks = append(c.Disks, volumeOf(t, "cidata", map[string][]byte{"user-data": e.machine}))
	ctx, m = startWithin(t, 2*patience, c)
	if _, err := m.Wait(ctx, maintenanceLine); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Wait(ctx, regexp.MustCompile(`kiln: stage=config \S+ from=none`)); err != nil {
		t.Fatal(err)
	}
	ready(t, ctx, m)
}
