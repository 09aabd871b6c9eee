package platform

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
)

const config = "version: v1alpha1\nhostname: node-1\n"

// A strict is a metadata service that refuses what its documentation refuses.
type strict struct {
	host  string
	check func(r *http.Request) (code int) // 0 is right
	token string                           // path of the token, fetched with PUT
	ttl   string                           // header of a PUT
	most  int                              // seconds
	head  string                           // header of a GET
	docs  map[string]string
	extra [2]string // header of answers
}

func (s *strict) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	fail := func(code int) { http.Error(w, http.StatusText(code), code) }
	if r.Host != s.host {
		fail(http.StatusMisdirectedRequest)
		return
	}
	if r.Header.Get("X-Forwarded-For") != "" || r.Header.Get("Accept-Encoding") != "" {
		fail(http.StatusForbidden)
		return
	}
	if s.extra[0] != "" {
		w.Header().Set(s.extra[0], s.extra[1])
	}
	if s.token != "" && r.URL.Path == s.token {
		n, err := strconv.Atoi(r.Header.Get(s.ttl))
		switch {
		case r.Method != http.MethodPut:
			fail(http.StatusMethodNotAllowed)
		case err != nil || n < 1 || n > s.most:
			fail(http.StatusBadRequest)
		default:
			fmt.Fprint(w, "dG9rZW4=")
		}
		return
	}
	if r.Method != http.MethodGet {
		fail(http.StatusMethodNotAllowed)
		return
	}
	if s.token != "" && r.Header.Get(s.head) != "dG9rZW4=" {
		fail(http.StatusUnauthorized)
		return
	}
	if s.check != nil {
		if code := s.check(r); code != 0 {
			fail(code)
			return
		}
	}
	text, ok := s.docs[r.URL.RequestURI()]
	if !ok {
		fail(http.StatusNotFound)
		return
	}
	fmt.Fprint(w, text)
}

func addrs(list ...string) []netip.Addr {
	var a []netip.Addr
	for _, s := range list {
		a = append(a, netip.MustParseAddr(s))
	}
	return a
}

func encoded(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// cloud is a platform, with its service as its documentation has it.
type cloud struct {
	name     string
	address  string
	service  *strict
	userData string // path
	encoded  bool
	want     *Metadata
}

func clouds() []cloud {
	header := func(name, value string, otherwise int) func(*http.Request) int {
		return func(r *http.Request) int {
			if r.Header.Get(name) != value {
				return otherwise
			}
			return 0
		}
	}
	return []cloud{
		{
			name: "aws", address: "169.254.169.254:80", userData: "/latest/user-data",
			service: &strict{
				token: "/latest/api/token", ttl: "X-aws-ec2-metadata-token-ttl-seconds", most: 21600, head: "X-aws-ec2-metadata-token",
				docs: map[string]string{
					"/latest/meta-data/local-hostname":              "ip-10-0-0-5.ec2.internal",
					"/latest/meta-data/instance-id":                 "i-0123456789abcdef0",
					"/latest/meta-data/placement/availability-zone": "eu-central-1a",
					"/latest/meta-data/placement/region":            "eu-central-1",
					"/latest/meta-data/local-ipv4":                  "10.0.0.5",
				},
			},
			want: &Metadata{
				Hostname: "ip-10-0-0-5.ec2.internal", InstanceID: "i-0123456789abcdef0", Region: "eu-central-1",
				Zone: "eu-central-1a", Private: addrs("10.0.0.5"),
			},
		},
		{
			name: "alibaba", address: "100.100.100.200:80", userData: "/latest/user-data",
			service: &strict{
				token: "/latest/api/token", ttl: "X-aliyun-ecs-metadata-token-ttl-seconds", most: 21600, head: "X-aliyun-ecs-metadata-token",
				docs: map[string]string{
					"/latest/meta-data/hostname": "iZbp1", "/latest/meta-data/instance-id": "i-bp1", "/latest/meta-data/zone-id": "cn-hangzhou-i",
					"/latest/meta-data/region-id": "cn-hangzhou", "/latest/meta-data/private-ipv4": "172.16.0.2", "/latest/meta-data/eipv4": "203.0.113.8\n",
				},
			},
			want: &Metadata{
				Hostname: "iZbp1", InstanceID: "i-bp1", Region: "cn-hangzhou", Zone: "cn-hangzhou-i",
				Private: addrs("172.16.0.2"), Public: addrs("203.0.113.8"),
			},
		},
		{
			name: "gcp", address: "metadata.google.internal:80", userData: "/computeMetadata/v1/instance/attributes/user-data",
			service: &strict{
				check: header("Metadata-Flavor", "Google", http.StatusForbidden), extra: [2]string{"Metadata-Flavor", "Google"},
				docs: map[string]string{"/computeMetadata/v1/instance/?recursive=true&alt=json": `{"id":6080571892,"hostname":"n1.c.p.internal",
					"zone":"projects/12/zones/europe-west1-b","networkInterfaces":[{"ip":"10.1.0.2","ipv6s":["fd20::5"],"accessConfigs":[{"externalIp":"203.0.113.9"}]}]}`},
			},
			want: &Metadata{
				Hostname: "n1.c.p.internal", InstanceID: "6080571892", Region: "europe-west1", Zone: "europe-west1-b",
				Private: addrs("10.1.0.2", "fd20::5"), Public: addrs("203.0.113.9"),
			},
		},
		{
			name: "azure", address: "169.254.169.254:80", encoded: true,
			userData: "/metadata/instance/compute/userData?api-version=2021-01-01&format=text",
			service: &strict{
				check: header("Metadata", "true", http.StatusBadRequest),
				docs: map[string]string{"/metadata/instance?api-version=2021-02-01&format=json": `{"compute":{"name":"vm-1","location":"westeurope","zone":"2",
					"vmId":"02aab8a4","osProfile":{"computerName":"node-az"}},"network":{"interface":[{"ipv4":{"ipAddress":[{"privateIpAddress":"10.2.0.4","publicIpAddress":"203.0.113.10"}]},
					"ipv6":{"ipAddress":[]}}]}}`},
			},
			want: &Metadata{
				Hostname: "node-az", InstanceID: "02aab8a4", Region: "westeurope", Zone: "2",
				Private: addrs("10.2.0.4"), Public: addrs("203.0.113.10"),
			},
		},
		{
			name: "openstack", address: "169.254.169.254:80", userData: "/openstack/latest/user_data",
			service: &strict{docs: map[string]string{
				"/openstack/latest/meta_data.json":    `{"uuid":"d8e02d56","hostname":"os-1.novalocal","name":"os-1","availability_zone":"nova"}`,
				"/openstack/latest/network_data.json": `{"links":[]}`,
				"/latest/meta-data/local-ipv4":        "10.3.0.4", "/latest/meta-data/public-ipv4": "",
			}},
			want: &Metadata{Hostname: "os-1.novalocal", InstanceID: "d8e02d56", Zone: "nova", Private: addrs("10.3.0.4"), Network: []byte(`{"links":[]}`)},
		},
		{
			name: "hcloud", address: "169.254.169.254:80", userData: "/hetzner/v1/userdata",
			service: &strict{docs: map[string]string{
				"/hetzner/v1/metadata/hostname": "h-1", "/hetzner/v1/metadata/instance-id": "42", "/hetzner/v1/metadata/region": "eu-central",
				"/hetzner/v1/metadata/availability-zone": "fsn1-dc14", "/hetzner/v1/metadata/public-ipv4": "203.0.113.11",
			}},
			want: &Metadata{Hostname: "h-1", InstanceID: "42", Region: "eu-central", Zone: "fsn1-dc14", Public: addrs("203.0.113.11")},
		},
		{
			name: "digital-ocean", address: "169.254.169.254:80", userData: "/metadata/v1/user-data",
			service: &strict{docs: map[string]string{"/metadata/v1.json": `{"droplet_id":2756294,"hostname":"do-1","region":"nyc3","interfaces":{
				"public":[{"ipv4":{"ip_address":"203.0.113.12"},"ipv6":{"ip_address":"2001:db8::1"}}],"private":[{"ipv4":{"ip_address":"10.132.0.1"}}]}}`}},
			want: &Metadata{
				Hostname: "do-1", InstanceID: "2756294", Region: "nyc3",
				Private: addrs("10.132.0.1"), Public: addrs("203.0.113.12", "2001:db8::1"),
			},
		},
		{
			name: "vultr", address: "169.254.169.254:80", userData: "/latest/user-data",
			service: &strict{docs: map[string]string{"/v1.json": `{"hostname":"v-1","instanceid":"4","instance-v2-id":"36e9cf60","region":{"regioncode":"EWR"},
				"interfaces":[{"network-type":"public","ipv4":{"address":"203.0.113.13"},"ipv6":{"address":"2001:db8::2"}},{"network-type":"private","ipv4":{"address":"10.5.0.2"},"ipv6":{}}]}`}},
			want: &Metadata{
				Hostname: "v-1", InstanceID: "36e9cf60", Region: "EWR",
				Private: addrs("10.5.0.2"), Public: addrs("203.0.113.13", "2001:db8::2"),
			},
		},
		{
			name: "upcloud", address: "169.254.169.254:80", userData: "/metadata/v1/user_data",
			service: &strict{docs: map[string]string{"/metadata/v1.json": `{"cloud_name":"upcloud","instance_id":"00322b68","hostname":"u-1","region":"de-fra1","network":{"interfaces":[
				{"type":"public","ip_addresses":[{"address":"203.0.113.14"}]},{"type":"utility","ip_addresses":[{"address":"10.6.0.3"}]}]}}`}},
			want: &Metadata{Hostname: "u-1", InstanceID: "00322b68", Zone: "de-fra1", Private: addrs("10.6.0.3"), Public: addrs("203.0.113.14")},
		},
		{
			name: "scaleway", address: "169.254.42.42:80", userData: "/user_data/cloud-init",
			service: &strict{
				check: func(r *http.Request) int {
					_, port, _ := net.SplitHostPort(r.RemoteAddr)
					if n, _ := strconv.Atoi(port); n >= 1024 && strings.HasPrefix(r.URL.Path, "/user_data") {
						return http.StatusForbidden
					}
					return 0
				},
				docs: map[string]string{"/conf?format=json": `{"id":"cb70","hostname":"s-1","private_ip":"10.7.0.2","public_ip":{"address":"203.0.113.15"},"location":{"zone_id":"par1"}}`},
			},
			want: &Metadata{Hostname: "s-1", InstanceID: "cb70", Zone: "par1", Private: addrs("10.7.0.2"), Public: addrs("203.0.113.15")},
		},
		{
			name: "exoscale", address: "169.254.169.254:80", userData: "/1.0/user-data",
			service: &strict{docs: map[string]string{
				"/1.0/meta-data/local-hostname": "e-1", "/1.0/meta-data/instance-id": "ee-1", "/1.0/meta-data/availability-zone": "ch-gva-2",
				"/1.0/meta-data/public-ipv4": "203.0.113.16", "/1.0/meta-data/local-ipv4": "203.0.113.16",
			}},
			want: &Metadata{Hostname: "e-1", InstanceID: "ee-1", Zone: "ch-gva-2", Private: addrs("203.0.113.16"), Public: addrs("203.0.113.16")},
		},
		{
			name: "cloudstack", address: "data-server.:80", userData: "/latest/user-data",
			service: &strict{docs: map[string]string{
				"/latest/meta-data/local-hostname": "c-1", "/latest/meta-data/instance-id": "c-id", "/latest/meta-data/availability-zone": "zone1",
				"/latest/meta-data/local-ipv4": "10.8.0.2", "/latest/meta-data/public-ipv4": "203.0.113.17",
			}},
			want: &Metadata{Hostname: "c-1", InstanceID: "c-id", Zone: "zone1", Private: addrs("10.8.0.2"), Public: addrs("203.0.113.17")},
		},
		{
			name: "oracle", address: "169.254.169.254:80", userData: "/opc/v2/instance/metadata/user_data", encoded: true,
			service: &strict{
				check: header("Authorization", "Bearer Oracle", http.StatusUnauthorized),
				docs:  map[string]string{"/opc/v2/instance/": `{"id":"ocid1.instance.oc1","displayName":"o-1","canonicalRegionName":"eu-frankfurt-1","availabilityDomain":"EMIr:EU-FRANKFURT-1-AD-1"}`},
			},
			want: &Metadata{Hostname: "o-1", InstanceID: "ocid1.instance.oc1", Region: "eu-frankfurt-1", Zone: "EMIr:EU-FRANKFURT-1-AD-1"},
		},
		{
			name: "akamai", address: "169.254.169.254:80", userData: "/v1/user-data", encoded: true,
			service: &strict{
				token: "/v1/token", ttl: "Metadata-Token-Expiry-Seconds", most: 86400, head: "Metadata-Token",
				check: func(r *http.Request) int {
					if r.URL.Path == "/v1/instance" && r.Header.Get("Accept") != "application/json" {
						return http.StatusNotAcceptable
					}
					return 0
				},
				docs: map[string]string{"/v1/instance": `{"id":39,"label":"a-1","region":"us-iad"}`},
			},
			want: &Metadata{Hostname: "a-1", InstanceID: "39", Region: "us-iad"},
		},
	}
}

// boot serves a cloud and returns the platform of a machine in it. userData is "-"
// for none.
func (c cloud) boot(t *testing.T, userData string) (*Platform, *network) {
	n := newNetwork(t)
	service := *c.service
	service.host = strings.TrimSuffix(c.address, ":80")
	service.docs = map[string]string{}
	for k, v := range c.service.docs {
		service.docs[k] = v
	}
	if userData != "-" {
		service.docs[c.userData] = userData
	}
	n.serve(c.address, &service)
	return New(c.name, machine(t, n)), n
}

func TestClouds(t *testing.T) {
	for _, c := range clouds() {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				data := config
				if c.encoded {
					data = encoded(config)
				}
				p, n := c.boot(t, data)
				defer n.close()
				r, err := quick().Acquire(t.Context(), p.Sources)
				if err != nil {
					t.Fatal(err)
				}
				if string(r.Data) != config || r.Source != c.name || r.Failed != nil {
					t.Errorf("found %q from %s, failed %v", r.Data, r.Source, r.Failed)
				}
				m, err := quick().Metadata(t.Context(), p)
				if err != nil {
					t.Fatal(err)
				}
				if !reflect.DeepEqual(m, c.want) {
					t.Errorf("metadata\n%+v, want\n%+v", m, c.want)
				}
			})
		})
	}
}

func TestCloudsWithoutUserData(t *testing.T) {
	for _, c := range clouds() {
		for _, data := range []string{"-", "", "\n"} {
			t.Run(fmt.Sprintf("%s %q", c.name, data), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p, n := c.boot(t, data)
					defer n.close()
					if _, err := quick().Acquire(t.Context(), p.Sources); !errors.Is(err, ErrNone) {
						t.Errorf("error %v, want ErrNone", err)
					}
				})
			})
		}
	}
}

// TestCloudsAreProfiles wants every platform that is a metadata service to be in
// the table.
func TestCloudsAreProfiles(t *testing.T) {
	tested := []string{"metal", "nocloud", "opennebula", "vmware"}
	for _, c := range clouds() {
		tested = append(tested, c.name)
	}
	slices.Sort(tested)
	if !slices.Equal(tested, Names()) {
		t.Errorf("tested %v, want %v", tested, Names())
	}
}

func TestEndpoints(t *testing.T) {
	for _, c := range []struct {
		name, platform, serve string
		silent                string // answers no connection
		want                  []string
	}{
		{"IPv6 only", "aws", "[fd00:ec2::254]:80", "", []string{"169.254.169.254:80", "[fd00:ec2::254]:80", "[fd00:ec2::254]:80"}},
		{"IPv4 lost", "aws", "[fd00:ec2::254]:80", "169.254.169.254:80", []string{"169.254.169.254:80", "[fd00:ec2::254]:80", "[fd00:ec2::254]:80"}},
		{"no DNS", "gcp", "169.254.169.254:80", "", []string{"metadata.google.internal:80", "169.254.169.254:80"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				for _, known := range clouds() {
					if known.name != c.platform {
						continue
					}
					known.address = c.serve
					p, n := known.boot(t, config)
					defer n.close()
					if c.silent != "" {
						n.listen(c.silent)
					}
					r, err := quick().Acquire(t.Context(), p.Sources)
					if err != nil || string(r.Data) != config {
						t.Fatalf("found %v, %v", r, err)
					}
					if !slices.Equal(n.dialed, c.want) {
						t.Errorf("dialed %v, want %v", n.dialed, c.want)
					}
				}
			})
		})
	}
}

// TestForeignService is a metadata service of another platform, or none at all, at
// the same address.
func TestForeignService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		defer n.close()
		n.serve("metadata.google.internal:80", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, config)
		}))
		_, err := quick().Acquire(t.Context(), New("gcp", machine(t, n)).Sources)
		wantError(t, err, `no machine configuration can be used:
  gcp: GET http://metadata.google.internal/computeMetadata/v1/instance/attributes/user-data: the answer has no header "Metadata-Flavor: Google"; it is not from the metadata service`)
	})
}

func wantError(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want\n%s", want)
	}
	if err.Error() != want {
		t.Errorf("error\n%s\nwant\n%s", err, want)
	}
}
