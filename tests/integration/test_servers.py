import redis
import sqlalchemy as sa


def test_each_test_gets_a_real_postgres_and_valkey(database_url: str, redis_client: redis.Redis) -> None:
    engine = sa.create_engine(database_url.replace("postgresql://", "postgresql+psycopg2://"))
    with engine.connect() as connection:
        assert (
            connection.execute(sa.text("SELECT count(*) FROM pg_tables WHERE schemaname='public'")).scalar()
            == 0
        )
    engine.dispose()
    assert redis_client.dbsize() == 0
