package workload

import (
	"reflect"
	"testing"
	"time"

	"github.com/kilnhq/kiln/internal/imagename"
	"github.com/kilnhq/kiln/machine/config"
	"github.com/kilnhq/kiln/machine/containers/static"
	"github.com/kilnhq/kiln/machine/extservice"
)

func TestConfigured(t *testing.T) {
	c, err := config.Parse("machine.yaml", []byte(`apiVersion: v1alpha1
kind: Service
name: web
image: registry.example.org/web:1
pull: never
command: [/web]
args: [--port, "80"]
workingDir: /srv
user: 1000
environment: {LEVEL: "1", ALSO: "2"}
mounts:
  - {source: /var/lib/web, target: /data, readOnly: true}
  - {type: tmpfs, target: /tmp, size: 16MiB}
network: bridge
ports: [{host: 8080, container: 80}]
capabilities: [CAP_NET_ADMIN]
resources: {memory: 64MiB, cpus: 0.5, pids: 32}
restart: on-failure
waitFor: {services: [db], network: true, time: true, paths: [/var/lib/web/ready]}
stopTimeout: 3s
`))
	if err != nil {
		t.Fatal(err)
	}
	user := uint32(1000)
	want := Workload{
		Container: static.Container{
			Name: "web", Image: "registry.example.org/web:1", Pull: static.PullNever, Command: []string{"/web"}, Args: []string{"--port", "80"},
			WorkingDir: "/srv", User: &user, Env: []string{"ALSO=2", "LEVEL=1"},
			Mounts: []static.Mount{
				{Type: "bind", Source: "/var/lib/web", Target: "/data", Options: []string{"rbind", "rslave", "nosuid", "nodev", "ro"}},
				{Type: "tmpfs", Source: "tmpfs", Target: "/tmp", Options: []string{"nosuid", "nodev", "mode=1777", "rw", "size=16777216"}},
			},
			Network: static.NetworkBridge, Ports: []static.Port{{Host: 8080, Container: 80, Protocol: "tcp"}},
			Capabilities: []string{"CAP_NET_ADMIN"}, Memory: 64 << 20, CPUs: 0.5, PIDs: 32, StopTimeout: 3 * time.Second,
		},
		Restart: OnFailure,
		Needs:   Needs{Services: []string{"db"}, Paths: []string{"/var/lib/web/ready"}, Network: true, Time: true},
	}
	if got := Configured(&c.Services[0]); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v\nwant %+v", got, want)
	}
}

func TestExtension(t *testing.T) {
	s, err := extservice.Parse("hello.yaml", []byte(`name: hello
container:
  entrypoint: ./hello
  args: [-f]
  environment: [A=b]
  environmentFile: /var/etc/env
  mounts: [{source: /dev, destination: /dev, options: [rbind, rw]}]
  security: {writeableRootfs: true, writeableSysfs: true, maskedPaths: [], rootfsPropagation: shared}
depends: [{service: cri}, {service: udevd}, {service: ext-other}, {path: /run/x}, {network: [hostname]}, {time: true}, {configuration: true}]
restart: untilSuccess
logToConsole: true
`))
	if err != nil {
		t.Fatal(err)
	}
	want := Workload{
		Container: static.Container{
			Name: "ext-hello", RootFS: "/usr/local/lib/containers/hello", Command: []string{"./hello", "-f"}, Env: []string{"A=b"}, EnvFile: "/var/etc/env",
			Mounts:       []static.Mount{{Type: "bind", Source: "/dev", Target: "/dev", Options: []string{"rbind", "rw"}}},
			WritableRoot: true, WritableSys: true, Propagation: "shared", MaskedPaths: &[]string{},
			Capabilities: []string{static.AllCapabilities}, AllDevices: true, NoSeccomp: true,
		},
		Restart: OnFailure, Console: true,
		Needs: Needs{Services: []string{"containerd", "ext-other"}, Paths: []string{"/var/etc/env", "/run/x"}, Network: true, Time: true, Configuration: true},
	}
	if got := Extension(s); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v\nwant %+v", got, want)
	}
	s.RunnerMode, s.Restart = extservice.RunHost, ""
	if got := Extension(s); !got.Host || got.Restart != Always {
		t.Errorf("%+v", got)
	}
}

func TestAll(t *testing.T) {
	named := func(name string, after ...string) config.Service {
		return config.Service{Name: name, WaitFor: config.WaitFor{Services: after}}
	}
	var names []string
	for _, w := range All(&config.Config{Services: []config.Service{named("a", "b", "elsewhere"), named("b", "c"), named("c", "ext-e"), named("d", "a")}},
		[]*extservice.Service{{Name: "f", Depends: []extservice.Dependency{{Service: "d"}}}, {Name: "e"}}) {
		names = append(names, w.Container.Name)
	}
	if want := []string{"ext-e", "c", "b", "a", "d", "ext-f"}; !reflect.DeepEqual(names, want) {
		t.Errorf("%v, want %v", names, want)
	}
	if w := All(nil, nil); len(w) != 0 {
		t.Errorf("%v", w)
	}
	if w := All(&config.Config{Services: []config.Service{named("a", "b"), named("b", "a")}}, nil); len(w) != 2 { // config.Parse refuses it
		t.Errorf("%v", w)
	}
}

func TestCanonical(t *testing.T) {
	const digest = "@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	for image, want := range map[string]string{
		"nginx": hub() + "/library/nginx:latest", "nginx:1.29": hub() + "/library/nginx:1.29", "a/b": hub() + "/a/b:latest",
		hub() + "/a/b:1": hub() + "/a/b:1", "example.org/a:1": "example.org/a:1", "localhost:5000/a": "localhost:5000/a:latest",
		"example.org/a" + digest: "example.org/a" + digest, "example.org/a:1" + digest: "example.org/a" + digest, "NO": "NO",
	} {
		if got := canonical(image); got != want {
			t.Errorf("%s: %s, want %s", image, got, want)
		}
	}
}

// hub is the registry of names that name none.
func hub() string {
	registry, _ := imagename.Default()
	return registry
}
