package nocloud

import (
	"strings"
	"testing"
)

func TestParseSeed(t *testing.T) {
	for _, c := range []struct {
		text     string
		userData string // URL of user-data, "" if there is none
		host, id string
	}{
		{"ds=nocloud", "", "", ""},
		{" ds=nocloud-net ", "", "", ""},
		{"ds=nocloud;", "", "", ""},
		{"ds=nocloud;s=http://192.0.2.1:8000/", "http://192.0.2.1:8000/user-data", "", ""},
		{"ds=nocloud;s=http://192.0.2.1", "http://192.0.2.1/user-data", "", ""},
		{"ds=nocloud;s=https://[2001:db8::1]/a/b", "https://[2001:db8::1]/a/b/user-data", "", ""},
		{"ds=nocloud;s=http://x/seed?file=", "http://x/seed?file=user-data", "", ""},
		{"ds=nocloud-net;h=n1;seedfrom=http://x/;i=iid-1", "http://x/user-data", "n1", "iid-1"},
		{"ds=nocloud;local-hostname=n1.example.org;instance-id=x", "", "n1.example.org", "x"},
	} {
		s, ok, err := ParseSeed(c.text)
		if err != nil || !ok {
			t.Errorf("%q: %v, %v", c.text, ok, err)
			continue
		}
		got := ""
		if s.URL != nil {
			got = s.File("user-data").String()
		}
		if got != c.userData || s.Hostname != c.host || s.InstanceID != c.id {
			t.Errorf("%q: %s %+v, want %+v", c.text, got, s, c)
		}
	}
	for _, text := range []string{"", "VMware-42 1a", "ds=", "ds=openstack", "ds=nocloudx", "nocloud;s=http://x/", "Not Specified"} {
		if _, ok, err := ParseSeed(text); ok || err != nil {
			t.Errorf("%q: %v, %v, want nothing", text, ok, err)
		}
	}
	for text, want := range map[string]string{
		"ds=nocloud;s=/var/seed/":  `NoCloud: found the seed's address "/var/seed/"; want an http or https URL`,
		"ds=nocloud;s=ftp://x/":    `NoCloud: found the seed's address "ftp://x/"; want an http or https URL`,
		"ds=nocloud;s=http://%zz/": `NoCloud: found the seed's address "http://%zz/"; want an http or https URL`,
		"ds=nocloud;x=1":           `NoCloud: found "x=1" in ds=nocloud; want s=URL, h=HOSTNAME or i=INSTANCE-ID`,
	} {
		if _, ok, err := ParseSeed(text); !ok || err == nil || err.Error() != want {
			t.Errorf("%q: %v, %v, want %s", text, ok, err, want)
		}
	}
}

func TestParseMetaData(t *testing.T) {
	for _, c := range []struct{ text, id, host string }{
		{"", "", ""},
		{"\n", "", ""},
		{"instance-id: iid-1\nlocal-hostname: n1\npublic-keys:\n- ssh-rsa x\n", "iid-1", "n1"},
		{"instance-id: 17\nhostname: n2\n", "17", "n2"},
		{`{"instance-id": "i", "local-hostname": "n3", "hostname": "n4"}`, "i", "n3"},
	} {
		m, err := ParseMetaData([]byte(c.text))
		if err != nil || m.InstanceID != c.id || m.Hostname != c.host {
			t.Errorf("%q: %+v, %v", c.text, m, err)
		}
	}
	for _, c := range []struct{ text, want string }{
		{"instance-id: [", "NoCloud meta-data: want YAML with instance-id and local-hostname: "},
		{"- a list\n", "NoCloud meta-data: want YAML with instance-id and local-hostname: "},
		{"instance-id: {a: b}\n", "NoCloud meta-data: want YAML with instance-id and local-hostname: "},
		{strings.Repeat("#", maxMetaData+1), "NoCloud meta-data has 65537 bytes, want at most 65536"},
	} {
		if _, err := ParseMetaData([]byte(c.text)); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%.20q: %v, want %s", c.text, err, c.want)
		}
	}
}

func FuzzParseSeed(f *testing.F) {
	f.Add("ds=nocloud;s=http://x/seed?file=;h=n1;i=x")
	f.Add("ds=nocloud-net;seedfrom=https://[::1]/a")
	f.Fuzz(func(t *testing.T, text string) {
		s, ok, err := ParseSeed(text)
		if err != nil || !ok || s.URL == nil {
			return
		}
		if u := s.File("user-data"); u.Host != s.URL.Host || u.Scheme != s.URL.Scheme {
			t.Errorf("%q: %s", text, u)
		}
	})
}

func FuzzParseMetaData(f *testing.F) {
	f.Add([]byte("instance-id: i\nlocal-hostname: n\n"))
	f.Add([]byte("a: &a [x]\nb: [*a, *a]\n"))
	f.Fuzz(func(_ *testing.T, data []byte) { _, _ = ParseMetaData(data) })
}
