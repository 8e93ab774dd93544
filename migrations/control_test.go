package migrations_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/migrations"
	"github.com/pgidem/pgidem/tenancy"
)

func TestUpControl(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	one, other := parse(t, "pgidem"), parse(t, "select")
	var wg sync.WaitGroup
	for range 4 {
		for _, schema := range []tenancy.Schema{one, other} {
			wg.Go(func() {
				if err := migrations.UpControl(context.Background(), pool.Config().ConnString(), schema); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	shapes := shape(t, pool, one)
	for _, want := range []string{"tenants r org_id uuid", "tenants_db_version r", "PRIMARY KEY (org_id)"} {
		if !strings.Contains(shapes, want) {
			t.Errorf("the control schema lacks %q:\n%s", want, shapes)
		}
	}
	if got := strings.ReplaceAll(shape(t, pool, other), "'select'", "'pgidem'"); got != shapes {
		t.Errorf("one control schema differs:\n%s\nfrom another\n%s", got, shapes)
	}
}

// TestUpControlBesideTenants: even a tenant's schema may be a control schema, since each set
// of migrations has a version table of its own.
func TestUpControlBesideTenants(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	schema := parse(t, "both")
	if err := migrations.Up(t.Context(), pool.Config().ConnString(), schema); err != nil {
		t.Fatal(err)
	}
	if err := migrations.UpControl(t.Context(), pool.Config().ConnString(), schema); err != nil {
		t.Fatal(err)
	}
	if got := shape(t, pool, schema); !strings.Contains(got, "idempotency_records r") || !strings.Contains(got, "tenants r") {
		t.Errorf("a set is missing:\n%s", got)
	}
}

func TestUpControlRefusesNonsense(t *testing.T) {
	t.Parallel()
	if err := migrations.UpControl(t.Context(), pgtest.NewDatabase(t), tenancy.Schema{}); err == nil || !strings.Contains(err.Error(), "zero Schema") {
		t.Errorf("the zero Schema: %v", err)
	}
	err := migrations.UpControl(t.Context(), "postgres://user:sesame@[::1", parse(t, "pgidem"))
	if err == nil || strings.Contains(err.Error(), "sesame") {
		t.Errorf("a URL that is none: %v; want an error without the password", err)
	}
}

// TestChangesAreTold: each change of a tenant is told by its org_id, on a channel that is
// the control schema's, whoever makes it; one that is rolled back is not.
func TestChangesAreTold(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	url := pool.Config().ConnString()
	long := parse(t, "c"+strings.Repeat("x", 62))
	for _, schema := range []tenancy.Schema{parse(t, "pgidem"), parse(t, "other"), long} {
		if err := migrations.UpControl(t.Context(), url, schema); err != nil {
			t.Fatal(err)
		}
	}
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if _, err := conn.Exec(t.Context(), `LISTEN pgidem_tenants_pgidem`); err != nil {
		t.Fatal(err)
	}
	one, other := uuid.New(), uuid.New()
	told := func(sql, end string, want ...string) {
		t.Helper()
		sql = strings.NewReplacer("$1", "'"+one.String()+"'", "$2", "'"+other.String()+"'").Replace(sql)
		// The mark shows that nothing else is to come.
		if _, err := pool.Exec(t.Context(), `BEGIN; `+sql+`; `+end+`; NOTIFY pgidem_tenants_pgidem, 'mark'`); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		var got []string
		for {
			n, err := conn.Conn().WaitForNotification(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if n.Payload == "mark" {
				break
			}
			got = append(got, n.Payload)
		}
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("%s: told %v, want %v", sql, got, want)
		}
	}
	insert := `INSERT INTO pgidem.tenants (org_id, schema_name) VALUES ($1, 'a')`
	told(insert, "ROLLBACK")
	told(insert, "COMMIT", one.String())
	told(`UPDATE pgidem.tenants SET state = 'active'`, "COMMIT", one.String())
	told(`UPDATE pgidem.tenants SET org_id = $2`, "COMMIT", one.String(), other.String())
	told(`DELETE FROM pgidem.tenants`, "COMMIT", other.String())
	told(`TRUNCATE pgidem.tenants`, "COMMIT", "all")
	told(strings.ReplaceAll(insert, "pgidem.", "other."), "COMMIT")
	told(strings.ReplaceAll(insert, "pgidem.", long.Quoted()+"."), "COMMIT") // its channel's name is cut
}
