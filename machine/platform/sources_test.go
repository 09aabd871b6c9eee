package platform

import (
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/kilnhq/kiln/machine/meta"
)

func sourceNames(p *Platform) string {
	var names []string
	for _, s := range p.Sources {
		names = append(names, s.Name)
	}
	return strings.Join(names, ", ")
}

func TestOrder(t *testing.T) {
	for _, c := range []struct {
		platform string
		args     []string
		want     string
	}{
		{"metal", nil, "STATE, STATE (previous), META, image"},
		{"metal", []string{serverArg}, "STATE, STATE (previous), kiln.config, META, image"},
		{"aws", nil, "STATE, STATE (previous), aws, META, image"},
		{"aws", []string{serverArg}, "STATE, STATE (previous), kiln.config, aws, META, image"},
		{"aws", []string{ArgConfig + "=none"}, "STATE, STATE (previous)"},
		{"nocloud", nil, "STATE, STATE (previous), nocloud, nocloud volume, META, image"},
		{"azure", nil, "STATE, STATE (previous), azure provisioning medium, azure, META, image"},
		{"openstack", nil, "STATE, STATE (previous), openstack config drive, openstack, META, image"},
		{"cloudstack", nil, "STATE, STATE (previous), cloudstack config drive, cloudstack, META, image"},
		{"opennebula", nil, "STATE, STATE (previous), opennebula context, META, image"},
		{"vmware", nil, "STATE, STATE (previous), vmware, META, image"},
		{"", nil, "STATE, STATE (previous), kiln.platform, META, image"},
	} {
		if got := sourceNames(New(c.platform, machine(t, newNetwork(t), c.args...))); got != c.want {
			t.Errorf("%s %v: %s, want %s", c.platform, c.args, got, c.want)
		}
	}
}

// TestAllSources takes away one source after the other.
func TestAllSources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		defer n.close()
		env := machine(t, n, serverArg)
		if err := errors.Join(env.State.Save([]byte("saved: before\n")), env.State.Save([]byte("saved: now\n"))); err != nil {
			t.Fatal(err)
		}
		server := "from: argument\n"
		n.serve(serverName, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if server == "" {
				w.WriteHeader(http.StatusNotFound)
				return
			}
			_, _ = io.WriteString(w, server)
		}))
		for _, c := range clouds() {
			if c.name == "hcloud" {
				service := *c.service
				service.host, service.docs = "169.254.169.254", map[string]string{c.userData: "from: platform\n"}
				n.serve(c.address, &service)
			}
		}
		inMeta := "from: META\n"
		env.Meta = func(k meta.Key) (string, bool, error) { return inMeta, k == meta.MachineConfig && inMeta != "", nil }
		write(t, env.Image, "from: image\n")

		remove := func(name string) func() {
			return func() {
				if err := os.Remove(filepath.Join(env.State.Dir, name)); err != nil {
					t.Fatal(err)
				}
			}
		}
		platform := "hcloud"
		for _, c := range []struct {
			want, source string
			failed       int
			then         func()
		}{
			{"saved: now\n", "STATE", 0, func() { write(t, filepath.Join(env.State.Dir, "config.yaml"), "\x00\x01") }},
			{"saved: before\n", "STATE (previous)", 1, remove("config.yaml")},
			{"saved: before\n", "STATE (previous)", 0, remove("config.yaml.previous")},
			{"from: argument\n", "kiln.config", 0, func() { server = "" }},
			{"from: platform\n", "hcloud", 1, func() { env.Args = nil }},
			{"from: platform\n", "hcloud", 0, func() { platform = "metal" }},
			{"from: META\n", "META", 0, func() { platform = "mars" }},
			{"from: META\n", "META", 1, func() { inMeta, platform = "", "metal" }},
			{"from: image\n", "image", 0, func() { write(t, env.Image, "") }},
		} {
			r, err := quick().Acquire(t.Context(), New(platform, env).Sources)
			if err != nil {
				t.Fatal(err)
			}
			if string(r.Data) != c.want || r.Source != c.source || len(r.Failed) != c.failed {
				t.Errorf("found %q from %s, failed %v, want %q from %s, failed %d", r.Data, r.Source, r.Failed, c.want, c.source, c.failed)
			}
			c.then()
		}
		if _, err := quick().Acquire(t.Context(), New("metal", env).Sources); err != ErrNone {
			t.Errorf("error %v, want ErrNone", err)
		}
	})
}

// TestLocalFaults is a machine on which nothing can be read.
func TestLocalFaults(t *testing.T) {
	env := machine(t, newNetwork(t))
	env.State.Dir = filepath.Join(env.State.Dir, "file")
	write(t, env.State.Dir, "")
	env.Meta = func(meta.Key) (string, bool, error) { return "", false, errors.New("META: both copies are damaged") }
	write(t, env.Image, strings.Repeat("#", MaxSize+1))
	_, err := quick().Acquire(t.Context(), New("mars", env).Sources)
	wantError(t, err, `no machine configuration can be used:
  STATE: STATE cannot be read: open `+env.State.Dir+`/config.yaml: not a directory
  STATE (previous): STATE cannot be read: open `+env.State.Dir+`/config.yaml.previous: not a directory
  kiln.platform: kernel argument kiln.platform=mars: no such platform; want one of akamai, alibaba, aws, azure, cloudstack, digital-ocean, exoscale, gcp, hcloud, metal, nocloud, opennebula, openstack, oracle, scaleway, upcloud, vmware, vultr
  META: META: both copies are damaged
  image: the machine configuration has more than 1048576 bytes`)
	var all *AcquireError
	if !errors.As(err, &all) || len(all.Failed) != 5 {
		t.Errorf("error %#v", err)
	}
	_, err = quick().Metadata(t.Context(), New("metal", env))
	if !errors.Is(err, ErrNone) || err.Error() != "no machine configuration: the platform metal has no metadata" {
		t.Errorf("error %v", err)
	}
	if err := quick().Ready(t.Context(), New("metal", env)); err != nil {
		t.Errorf("error %v", err)
	}
}

func TestExpand(t *testing.T) {
	env := machine(t, newNetwork(t))
	env.Firmware = firmware("SN 1/2&x")
	mac, host, id, code := "52:54:00:12:34:56", "..", "", "secret"
	env.MAC, env.Hostname = func() string { return mac }, func() string { return host }
	env.Meta = func(k meta.Key) (string, bool, error) {
		switch k {
		case meta.DownloadURLCode:
			return code, code != "", nil
		case meta.UUIDOverride:
			return id, id != "", nil
		}
		return "", false, nil
	}
	const uuid = "00112233-4455-6677-8899-aabbccddeeff"
	good := func(text, want string) {
		t.Helper()
		got, err := expand(env, text)
		if err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", text, got, err, want)
		}
	}
	bad := func(text, want string, temporary bool) {
		t.Helper()
		got, err := expand(env, text)
		var temp *TemporaryError
		if err == nil || err.Error() != want || errors.As(err, &temp) != temporary {
			t.Errorf("%s: %q, %v, want %s", text, got, err, want)
		}
	}
	good("http://config.test/a", "http://config.test/a")
	good("https://config.test/${uuid}.yaml?s=${serial}&m=${mac}&c=${code}",
		"https://config.test/"+uuid+".yaml?s=SN+1%2F2%26x&m=52%3A54%3A00%3A12%3A34%3A56&c=secret")
	good("http://config.test/${serial}/${mac}", "http://config.test/SN%201%2F2&x/52:54:00:12:34:56")
	good("http://config.test/${hostname}/x", "http://config.test/%2E%2E/x")
	good("http://config.test?u=${uuid}", "http://config.test?u="+uuid)
	id = "override"
	good("http://config.test/${uuid}", "http://config.test/override")

	const want = "; want an http or https URL, metal-iso or none"
	bad("", `found ""`+want, false)
	bad("config.test/a", `found "config.test/a"`+want, false)
	bad("ftp://config.test/a?secret", `found "ftp://config.test/a"`+want, false)
	bad("http:///a", `found "http:///a"`+want, false)
	bad("http://${hostname}/a", "${hostname} is before the path of the URL; want http:// or https://, a host, and variables behind it", false)
	bad("${code}://x/", "${code} is before the path of the URL; want http:// or https://, a host, and variables behind it", false)
	bad("http://x/${token}", "${token} is not known; want ${uuid}, ${serial}, ${mac}, ${hostname} or ${code}", false)
	bad("http://x/${uuid", "${ has no }", false)
	mac, host, id, code = "", "", "", ""
	env.Firmware = firmware("")
	bad("http://x/${mac}", "${mac}: there is no network card yet", true)
	bad("http://x/${hostname}", "${hostname}: the machine has no name yet", true)
	bad("http://x/${code}", "${code}: META has no value download-url-code", false)
	bad("http://x/${serial}", "${serial}: the firmware has no serial number", false)
	env.Firmware = machine(t, newNetwork(t)).Firmware
	bad("http://x/${uuid}", "${uuid}: the firmware has no UUID; set the value uuid-override of META", false)
}

// TestArgument asks a server for what the argument says, when it is known.
func TestArgument(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		defer n.close()
		env := machine(t, n, ArgConfig+"=http://config.test/c?m=${mac}&h=${hostname}")
		asked := 0
		env.MAC = func() string {
			if asked++; asked < 3 {
				return ""
			}
			return "52:54:00:12:34:56"
		}
		env.Hostname = func() string { return "n1" }
		n.serve(serverName, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("m") != "52:54:00:12:34:56" || r.URL.Query().Get("h") != "n1" || r.Header.Get("User-Agent") == "" {
				w.WriteHeader(http.StatusTeapot)
				return
			}
			_, _ = io.WriteString(w, config)
		}))
		r, err := DefaultPolicy().Acquire(t.Context(), only(New("metal", env)))
		if err != nil || string(r.Data) != config {
			t.Errorf("found %v, %v", r, err)
		}
		if want := []string{serverName}; !slices.Equal(n.dialed, want) {
			t.Errorf("dialed %v", n.dialed)
		}
	})
}

func FuzzExpand(f *testing.F) {
	f.Add("http://config.test/${uuid}?s=${serial}", "a b&c")
	f.Add("http://${hostname}/", "../..")
	f.Fuzz(func(t *testing.T, text, value string) {
		env := &Environment{
			Firmware: firmware(""), MAC: func() string { return value }, Hostname: func() string { return value },
			Meta: func(meta.Key) (string, bool, error) { return value, true, nil },
		}
		u, err := expand(env, text)
		if err != nil {
			return
		}
		if !strings.HasPrefix(u, "http://") && !strings.HasPrefix(u, "https://") {
			t.Errorf("%q: %q", text, u)
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(config))
	f.Add([]byte(zipped(f, config)))
	f.Add([]byte("#cloud-config\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		text, err := Decode(data)
		if err == nil && (len(text) == 0 || len(text) > MaxSize) {
			t.Errorf("%d bytes", len(text))
		}
	})
}

func FuzzMetadata(f *testing.F) {
	for _, c := range clouds() {
		for _, text := range c.service.docs {
			if strings.HasPrefix(text, "{") {
				f.Add([]byte(text))
			}
		}
	}
	f.Fuzz(func(_ *testing.T, data []byte) {
		for _, decode := range []func([]byte, *Metadata) error{
			akamaiInstance, azureInstance, digitalOcean, googleInstance, openStackMetaData, oracleInstance, scalewayConf, upCloud, vultr,
		} {
			_ = decode(data, &Metadata{})
		}
	})
}
